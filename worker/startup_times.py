"""Measures a start in parts, from a moment that may lie before this program could look at a clock."""

from __future__ import annotations

import time

import msgspec

from wire.messages import StartupTimes


class Stopwatch:
    """Times that add up to the whole: each part begins where the one before it ended."""

    def __init__(self, began: float, *, standby: bool = False) -> None:
        """`began` is Unix time; from then until now it took the program to run."""
        self._times = StartupTimes(spawn_s=max(time.time() - began, 0.0), standby=standby)
        self._last = time.monotonic()

    def lap(self, part: str) -> None:
        """The part of this name ends now."""
        now = time.monotonic()
        self._times = msgspec.structs.replace(self._times, **{part: now - self._last})
        self._last = now

    @property
    def times(self) -> StartupTimes:
        """All parts so far."""
        return self._times


def in_words(times: StartupTimes) -> str:
    """The parts that took any time, for the log."""
    parts = {
        "spawn": times.spawn_s,
        "import": times.import_s,
        "load": times.load_s,
        "to device": times.device_s,
        "warm-up": times.warm_up_s,
    }
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items() if seconds >= 0.005)
