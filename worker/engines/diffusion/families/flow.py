"""What the flow-matching families share."""

from __future__ import annotations

from typing import Any


def timestep_shift(scheduler: Any, patches: int, max_shift: float) -> float:
    """How far the schedule leans towards noise: the more patches a picture has, the more.

    `max_shift` stands in where the scheduler does not say.
    """
    # Imported here, because the whole of FLUX comes with it.
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = scheduler.config
    mu: float = calculate_shift(
        patches,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", max_shift),
    )
    return mu
