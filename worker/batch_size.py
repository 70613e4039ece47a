"""How many tasks may share a step: as many as still gain something, are not too slow, and fit. Pure.

Larger batches are used as long as each brings more images per second by `min_gain`, which is where a device saturates:
past that they would only make every task of the batch wait longer. What a step costs is measured at the start for the
usual sizes (`measure`), alone and with equal requests, and that stands. For other sizes it is learnt from the steps
that are made anyway, and forgotten after a minute: those are disturbed by whatever else goes on, and one slow moment
at a large batch must not make batches small for good.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence

from wire.messages import ImageInputs, StepCurve

#: The batches that are measured, and that GPU kernels are prepared for.
BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32)
#: Steps seen at a batch before it counts: the first choose kernels and take memory.
_SEEN = 3
#: Steps that count, and for how many seconds.
_RECENT = 15
_REMEMBERED_S = 60.0
#: Sizes that are learnt about at a time: requests may come in any.
_SIZES = 16
#: A batch that did not fit is tried again after this long: memory may have been freed by others.
_RETRY_S = 600.0

Size = tuple[int, int]


def size_of(inputs: ImageInputs) -> Size:
    """Width and height: what a step costs depends on them."""
    return inputs.width, inputs.height


class Caps:
    """The largest batch of each picture size and batch key."""

    def __init__(self, most: int, *, fixed: bool, min_gain: float, max_step_s: float | None) -> None:
        """`most` is never exceeded; `fixed` takes it as it is, without asking what is gained."""
        self._most = most
        self._fixed = fixed
        self._min_gain = min_gain
        self._max_step_s = max_step_s
        self._measured: dict[Size, list[tuple[int, float]]] = {}
        #: Seconds of recent steps and when they were, by size and batch; the size that was seen last stands last.
        self._learnt: OrderedDict[Size, dict[int, deque[tuple[float, float]]]] = OrderedDict()
        self._fits: dict[Hashable, tuple[int, float]] = {}

    def measured(self, size: Size, points: Sequence[tuple[int, float]]) -> None:
        """What steps of this size cost, for good: (tasks, seconds), by tasks."""
        self._measured[size] = list(points)

    def observe(self, size: Size, tasks: int, seconds: float, now: float) -> None:
        """A step of so many tasks took so long."""
        if size in self._measured or (tasks not in BUCKETS and tasks != self._most):
            return
        batches = self._learnt.setdefault(size, {})
        self._learnt.move_to_end(size)
        batches.setdefault(tasks, deque(maxlen=_RECENT)).append((seconds, now))
        if len(self._learnt) > _SIZES:
            self._learnt.popitem(last=False)

    def did_not_fit(self, key: Hashable, fits: int, now: float) -> None:
        """A step of this key was out of memory; one of `fits` tasks is what was left."""
        self._fits[key] = (max(fits, 1), now + _RETRY_S)

    def of(self, key: Hashable, size: Size, now: float) -> int:
        """Most tasks of this key in one step."""
        self._fits = {key: (fits, until) for key, (fits, until) in self._fits.items() if until > now}
        return min(self._fits.get(key, (self._most, 0.0))[0], self.of_size(size, now))

    def of_any(self, size: Size, now: float) -> int:
        """Tasks that surely have room, whatever their key: what an idle worker may promise."""
        return min([self.of(key, size, now) for key in list(self._fits)], default=self.of_size(size, now))

    def of_size(self, size: Size, now: float) -> int:
        """Most tasks of this size in one step, memory aside.

        While the largest batch that was seen is still the best, the next larger one may be tried.
        """
        points = self._points(size, now)
        cap, pace = 1, 0.0
        for tasks, seconds in points:
            if self._max_step_s is not None and seconds > self._max_step_s and tasks > 1:
                return cap
            if self._fixed or tasks / seconds > (1 + self._min_gain) * pace:
                cap, pace = tasks, tasks / seconds
        if not points or points[-1][0] == cap:
            larger = [bucket for bucket in BUCKETS if bucket > cap]
            cap = self._most if self._fixed and self._max_step_s is None else min(larger, default=self._most)
        return min(cap, self._most)

    def curves(self, now: float) -> list[StepCurve]:
        """What is known, by size: those that were measured first."""
        sizes = [*self._measured, *list(self._learnt)]  # a copy: asked from another thread
        return [StepCurve(*size, self.of_size(size, now), self._points(size, now)) for size in sizes]

    def _points(self, size: Size, now: float) -> list[tuple[int, float]]:
        if size in self._measured:
            return self._measured[size]
        points = []
        for tasks, steps in sorted(self._learnt.get(size, {}).items()):
            recent = [seconds for seconds, at in list(steps) if now - at <= _REMEMBERED_S]
            if len(recent) >= _SEEN:
                points.append((tasks, max(statistics.median(recent), 1e-9)))
        return points
