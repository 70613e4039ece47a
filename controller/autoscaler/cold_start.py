"""What a start takes, from what earlier ones took: how far ahead a policy must look. Pure.

The live controller feeds it with what its workers tell. A simulation has two ways: to put `started_in_s` and
`from_standby` into its replicas, as if its workers told, or to say what a start takes in `scaling.cold_start_s` and
`scaling.standby_start_s`. Either way `expected_s` is what the policy is told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from configs.scaling import Scaling

#: Starts that an estimate rests on, each way.
_MAX_SAMPLES = 20
#: Nine of ten starts take no longer than the estimate.
_QUANTILE = 0.9
#: What a start from standby is taken to last before one was seen.
FIRST_STANDBY_S = 5.0


@dataclass(frozen=True, slots=True)
class StartupTimes:
    """What a model's last starts took, in seconds, oldest first."""

    cold: tuple[float, ...] = ()
    standby: tuple[float, ...] = ()

    def with_sample(self, seconds: float, *, standby: bool) -> StartupTimes:
        """These and one more; the oldest are forgotten."""
        if standby:
            return StartupTimes(self.cold, (*self.standby, seconds)[-_MAX_SAMPLES:])
        return StartupTimes((*self.cold, seconds)[-_MAX_SAMPLES:], self.standby)


def cold_s(starts: StartupTimes, scaling: Scaling, guess_s: float) -> float:
    """Seconds of a start from nothing: as configured, as measured, or else as guessed."""
    if scaling.cold_start_s != "auto":
        return scaling.cold_start_s
    return _quantile(starts.cold) if starts.cold else guess_s


def standby_s(starts: StartupTimes, scaling: Scaling, guess_s: float) -> float:
    """Seconds of a start from standby, which is never taken to be longer than one from nothing.

    `guess_s` is that of a start from nothing.
    """
    maximum = cold_s(starts, scaling, guess_s)
    if scaling.standby_start_s != "auto":
        return min(scaling.standby_start_s, maximum)
    return min(_quantile(starts.standby) if starts.standby else FIRST_STANDBY_S, maximum)


def expected_s(starts: StartupTimes, scaling: Scaling, guess_s: float, ready_spares: int) -> float:
    """Seconds that the next start will take: that of a spare where one is ready."""
    return (standby_s if ready_spares else cold_s)(starts, scaling, guess_s)


def _quantile(seconds: Sequence[float]) -> float:
    return sorted(seconds)[math.ceil(_QUANTILE * len(seconds)) - 1]
