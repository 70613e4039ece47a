"""Published durations of a denoising step by batch size, and the lines that simulated accelerators follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedCurve:
    """Seconds of one step by batch size, as published, and the line `t0_s + t1_s * batch` that stands for them."""

    name: str
    source: str
    published: Mapping[int, float]
    t0_s: float
    t1_s: float

    def step_s(self, batch: int) -> float:
        return self.t0_s + self.t1_s * batch

    def sim(self, speed: float = 1.0) -> dict[str, float]:
        """Return the settings of a simulated accelerator that runs `speed` times as fast as the published one."""
        return {"t0_s": self.t0_s / speed, "t1_s": self.t1_s / speed}


#: Steps per second were published: 21.66, 11.6 and 3.04. The line goes through the smallest and the largest batch.
A100 = PublishedCurve(
    name="A100",
    source="documentation of diffusers, page Torch 2.0: Stable Diffusion 1.5, 512x512, float16, not compiled",
    published={1: 1 / 21.66, 4: 1 / 11.6, 16: 1 / 3.04},
    t0_s=0.02732,
    t1_s=0.01885,
)
#: Mean seconds of an image by users were published, for batches of whole requests: 2.185, 4.206, 7.524 and 10.929, of
#: 30 steps each. Users of equal requests share each batch, so that users are batch size. The line is the least-squares.
A10 = PublishedCurve(
    name="A10",
    source="Lightning AI, February 2023: Stable Diffusion 1.5, DDIM, 30 steps, 512x512, batches of whole requests",
    published={1: 2.185 / 30, 2: 4.206 / 30, 4: 7.524 / 30, 6: 10.929 / 30},
    t0_s=0.0195,
    t1_s=0.0577,
)
CURVES = {curve.name: curve for curve in (A100, A10)}
