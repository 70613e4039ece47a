"""A sampler in steps that moves between workers: unadjusted Langevin dynamics on a ring of eight hills.

Each request asks for some points. They start as noise and climb the logarithm of the density, with fresh noise in
each step: x <- x + e * grad log p(x) + sqrt(2 e) * noise (Roberts and Tweedie, 1996). The noise follows from the seed
and the step. So a request that moved to another worker gives the same points as one that did not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

Points = NDArray[np.float64]
_HILLS = 2.0 * np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1)
#: Width of a hill, and the step size.
_SIGMA, _STEP = 0.25, 0.005


class Request(BaseModel):
    """What a client asks for."""

    points: int = Field(default=200, ge=1, le=10_000)
    steps: int = Field(default=300, ge=1, le=10_000)
    seed: int = Field(default=0, ge=0)


@dataclass
class Walk:
    """The state of a request between two steps."""

    request: Request
    points: Points
    step: int = 0


class RingSampler:
    """Points `(points, 2)` around the ring. Requests of all sizes share a step."""

    max_batch_size = 32

    def load(self, device: str) -> None:
        """Nothing to load: the density is a formula."""

    def steps(self, item: Request) -> int:
        return item.steps

    def start(self, item: Request) -> Walk:
        """Spread the points over the plane."""
        return Walk(item, 3.0 * _noise(item, 0))

    def step(self, states: list[Walk]) -> None:
        """Advance all walks by one step, in one array."""
        every = np.concatenate([walk.points for walk in states])
        moved = np.split(every + _STEP * gradient(every), np.cumsum([walk.request.points for walk in states])[:-1])
        for walk, points in zip(states, moved, strict=True):
            walk.step += 1
            walk.points = points + np.sqrt(2 * _STEP) * _noise(walk.request, walk.step)

    def result(self, state: Walk) -> Points:
        return state.points

    def save(self, state: Walk) -> dict[str, Any]:
        """Return what another worker needs to go on."""
        return {"points": state.points, "step": state.step}

    def restore(self, item: Request, saved: dict[str, Any]) -> Walk:
        """Go on from what `save` has returned."""
        return Walk(item, np.array(saved["points"]), saved["step"])

    def example(self) -> Request:
        """An input to measure the best batch with."""
        return Request()


def gradient(points: Points) -> Points:
    """Return the gradient of the logarithm of the density at each point."""
    away = _HILLS - points[:, None]
    weights = np.exp(-(away**2).sum(axis=2) / (2 * _SIGMA**2)) + 1e-12
    pull: Points = (weights[..., None] * away).sum(axis=1) / weights.sum(axis=1, keepdims=True) / _SIGMA**2
    return pull


def _noise(request: Request, step: int) -> Points:
    return np.random.default_rng([request.seed, step]).standard_normal((request.points, 2))
