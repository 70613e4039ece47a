"""How much load there is at each moment of a test, as a share of its maximum. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal, NamedTuple

Kind = Literal["steady", "ramp", "spike", "replay"]
KINDS: tuple[Kind, ...] = ("steady", "ramp", "spike", "replay")
#: Outside of its spike, a `spike` has this share of the load.
SPIKE_BASE = 0.2
#: The spike, in shares of the duration.
_SPIKE_FROM, _SPIKE_TO = 0.4, 0.6


class LoadShape(NamedTuple):
    """The load over the time of a test, in seconds from its start."""

    kind: Kind
    #: Of the whole test, with the ramp.
    seconds: float
    #: `steady`, `spike`: the load rises over this time at the start. `ramp` rises over its whole duration.
    ramp_s: float = 0.0

    def level(self, at_s: float) -> float:
        """Return the load at a moment, from 0 to 1. It is 0 outside of the test."""
        if not 0 <= at_s < self.seconds:
            return 0.0
        if self.kind == "ramp":
            return at_s / self.seconds
        rising = min(at_s / self.ramp_s, 1.0) if self.ramp_s else 1.0
        if self.kind == "spike" and not _SPIKE_FROM <= at_s / self.seconds < _SPIKE_TO:
            return rising * SPIKE_BASE
        return rising


def poisson_arrivals(shape: LoadShape, rate: float, rng: random.Random) -> Iterator[float]:
    """Yield the times of a Poisson process whose rate is `rate` per second times the shape's level, by thinning."""
    at = 0.0
    while (at := at + rng.expovariate(rate)) < shape.seconds:
        if rng.random() < shape.level(at):
            yield at


def users_at(shape: LoadShape, users: int, at_s: float) -> int:
    """Return the number of users at a moment; at least one, since a test without users would end."""
    return max(round(users * shape.level(at_s)), 1)
