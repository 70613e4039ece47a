"""The resolution-dependent timestep shift of flow-matching families."""

from __future__ import annotations

from typing import Any


def timestep_shift(scheduler: Any, patches: int, max_shift: float) -> float:
    """Return the timestep shift `mu`, which grows with the number of patches.

    `max_shift` is the default if the scheduler does not configure it.
    """
    # Imported here, because it imports all of FLUX.
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
