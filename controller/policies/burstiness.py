"""How uneven arrivals are: the variance of their counts over the mean. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from configs.scaling import Scaling
from controller.types import Queue

#: Of what was counted before, this much counts after each period: about the last 40 periods, an hour by default.
_DECAY = 1 - 1 / 40
#: Arrivals that are taken to have been independent before the first was seen.
_PRIOR = 100
#: Two counts that differ by more standard deviations of independent arrivals tell of another rate, not of bunches.
_SAME_RATE = 5


@dataclass(frozen=True, slots=True)
class DispersionIndex:
    """Arrivals of successive look-back periods, each compared with the one before, so that slow changes count little.

    The squared difference of two counts of the same mean is on average twice their variance, their sum twice the mean.
    """

    #: When the last period ended, on the controller's clock, and how many came in it; None before the first.
    at: float | None = None
    last: int = 0
    #: Squared differences and sums, those long ago less.
    squares: float = _PRIOR
    sums: float = _PRIOR

    @property
    def burstiness(self) -> float:
        """1 for independent arrivals and for more regular ones, above 1 for those that come in bunches."""
        return max(self.squares / self.sums, 1.0)

    def updated(self, queue: Queue, scaling: Scaling, now: float) -> DispersionIndex:
        """With what is seen now. A look within a period says nothing yet, a gap breaks the succession."""
        period = scaling.look_back_period_s
        if queue.uptime_s < period or (self.at is not None and now < self.at + period):
            return self
        ended = replace(self, at=now, last=queue.arrivals_short_window)
        square, both = (queue.arrivals_short_window - self.last) ** 2, queue.arrivals_short_window + self.last
        if self.at is None or now >= self.at + 2 * period or square > _SAME_RATE**2 * both:
            return ended
        return replace(ended, squares=_DECAY * self.squares + square, sums=_DECAY * self.sums + both)

    def shifted(self, seconds: float) -> DispersionIndex:
        """The same with every time so much later."""
        return self if self.at is None else replace(self, at=self.at + seconds)
