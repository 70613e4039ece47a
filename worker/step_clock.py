"""Attributes time to the steps that took it. Pure.

A GPU works behind the loop: `step` queues work, and returns when the step before it has finished. The time of that call
belongs to the step before. Charged to the step that was queued, it would bill the time of a large image to a small one.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from wire.inputs import Shape


class StepRecord(NamedTuple):
    """One step of a batch."""

    key: Hashable
    shape: Shape
    #: Tasks that have advanced.
    advanced: int
    #: All tasks of the batch have advanced, in one call: its time tells about batches of this size.
    is_whole: bool


class TimedStep(NamedTuple):
    """A step and its duration."""

    step: StepRecord
    seconds: float


class StepClock:
    """Measures the steps of one loop."""

    def __init__(self, *, behind: bool) -> None:
        """`behind`: each call returns when the step before it has finished, and not its own."""
        self._behind = behind
        #: The step that the device works on, and when it began.
        self._pending: tuple[StepRecord, float] | None = None

    def on_return(self, step: StepRecord, called: float, now: float) -> TimedStep | None:
        """Note that the call for `step` has returned; return the step that it has waited for."""
        if not self._behind:
            return TimedStep(step, now - called)
        finished, self._pending = self._pending, (step, now)  # the device begins it when the one before is done
        return None if finished is None else TimedStep(finished[0], now - finished[1])

    def on_idle(self) -> None:
        """Note that no step follows: nothing waits for the last one, and its duration stays unknown."""
        self._pending = None
