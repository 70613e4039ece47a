"""The time by which what is old is deleted. A system clock that jumps ahead deletes nothing at once."""

from __future__ import annotations

#: Speed at which the clock follows the system's after a jump.
_MAX_SPEED = 2.0


class RetentionClock:
    """Unix time that is never ahead of the system clock, and runs at most at twice the speed of a steady one."""

    def __init__(self, wall: float, monotonic: float) -> None:
        """`wall` is Unix time of the system, `monotonic` seconds on a steady clock, both of now."""
        self._time = wall
        self._last = monotonic

    def now(self, wall: float, monotonic: float) -> float:
        """Return the time. The arguments are those of `__init__`, later."""
        ahead = self._time + _MAX_SPEED * (monotonic - self._last)
        self._time, self._last = min(wall, ahead), monotonic
        return self._time
