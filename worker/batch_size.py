"""Finds the largest batch that still pays off, is fast enough and fits into memory. Pure.

A larger batch is used while it brings more images per second by `min_gain`. Past that point the device is saturated,
and a larger batch only makes every task wait longer. Step times of the usual sizes are measured at the start, with
equal requests and nothing else running, and stay. Other sizes, and larger batches than were measured, are learnt from
the steps of requests. Those times expire after a minute, because they are disturbed by other work, and one slow moment
must not limit batches for good.
"""

from __future__ import annotations

import itertools
import statistics
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence

from wire.inputs import Shape
from wire.messages import MAX_CURVES, StepCurve

#: Batch sizes that are measured and for which GPU kernels are prepared.
BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32)
#: Steps needed before a batch size counts: the first ones choose kernels and allocate memory.
_MIN_STEPS = 3
#: Number and age of the steps that count.
_RECENT_STEPS = 15
_RECENT_S = 60.0
#: Image sizes learnt at a time: requests may have any.
_MAX_SIZES = 16
#: A batch that did not fit is tried again after this long: others may have freed memory.
_RETRY_S = 600.0

#: (tasks in the batch, seconds of a step), by tasks.
Points = list[tuple[int, float]]


class BatchSizer:
    """The batch limit of each image size and batch key."""

    def __init__(self, max_batch: int, *, fixed: bool, min_gain: float, max_step_s: float | None) -> None:
        """`max_batch` is never exceeded; `fixed` uses it without regard to the gain."""
        self._max_batch = max_batch
        self._fixed = fixed
        self._min_gain = min_gain
        self._max_step_s = max_step_s
        self._measured: dict[Shape, Points] = {}
        #: (seconds, time) of recent steps, by size and batch; the size used last is the last. Not an LRUCache, whose
        #: reads change the order: `curves` reads from another thread.
        self._learnt: OrderedDict[Shape, dict[int, deque[tuple[float, float]]]] = OrderedDict()
        #: Those of measured sizes of which no steps were learnt: they do not change.
        self._limits: dict[Shape, int] = {}
        #: Tasks that fit into memory, and the time until which that limit holds.
        self._memory_limits: dict[Hashable, tuple[int, float]] = {}

    def set_measured(self, shape: Shape, points: Sequence[tuple[int, float]]) -> None:
        """Store measured step times of this size; observed steps only add larger batches."""
        self._measured[shape] = list(points)
        self._limits.pop(shape, None)

    def observe(self, shape: Shape, tasks: int, seconds: float, now: float) -> None:
        """Learn from a step of a request."""
        if tasks not in BUCKETS and tasks != self._max_batch:
            return
        if shape in self._measured and tasks <= self._measured[shape][-1][0]:
            return
        self._limits.pop(shape, None)
        batches = self._learnt.setdefault(shape, {})
        steps = batches.get(tasks)
        if steps is None:
            steps = batches[tasks] = deque(maxlen=_RECENT_STEPS)
        steps.append((seconds, now))
        self._learnt.move_to_end(shape)
        if len(self._learnt) > _MAX_SIZES:
            self._learnt.popitem(last=False)

    def on_out_of_memory(self, key: Hashable, fits: int, now: float) -> None:
        """Limit this key to `fits` tasks for a while."""
        self._memory_limits[key] = (max(fits, 1), now + _RETRY_S)

    def limit(self, shape: Shape, now: float, *, key: Hashable = None) -> int:
        """Return the largest number of tasks of this size and key in one step.

        Without a key, return the number that fits whatever their keys, which an idle worker may promise.
        """
        if not self._memory_limits:
            if self._max_batch == 1 or (self._fixed and self._max_step_s is None):
                return self._max_batch
            limit = self._limits.get(shape)
            if limit is None:
                limit = self.limit_and_points(shape, now)[0]
                if shape in self._measured and shape not in self._learnt:
                    self._limits[shape] = limit
            return limit
        self._memory_limits = {each: limit for each, limit in self._memory_limits.items() if limit[1] > now}
        fitting = [fits for each, (fits, _) in self._memory_limits.items() if key in (each, None)]
        return min([*fitting, self.limit_and_points(shape, now)[0]])

    def limit_and_points(self, shape: Shape, now: float) -> tuple[int, Points]:
        """Return the largest number of tasks of this size in one step, and the known step times that it follows from.

        Memory does not count. While the largest batch with a known time is still the best, the next larger one may be
        tried.
        """
        points = list(self._measured.get(shape, ()))
        for tasks, steps in sorted(self._learnt.get(shape, {}).items()):
            recent = [seconds for seconds, at in list(steps) if now - at <= _RECENT_S]
            if len(recent) >= _MIN_STEPS:
                points.append((tasks, max(statistics.median(recent), 1e-9)))
        limit, rate = 1, 0.0
        for tasks, seconds in points:
            if self._max_step_s is not None and seconds > self._max_step_s and tasks > 1:
                return limit, points
            if self._fixed or tasks / seconds > (1 + self._min_gain) * rate:
                limit, rate = tasks, tasks / seconds
        if not points or points[-1][0] == limit:
            larger = [bucket for bucket in BUCKETS if bucket > limit]
            unlimited = self._fixed and self._max_step_s is None
            limit = self._max_batch if unlimited else min(larger, default=self._max_batch)
        return min(limit, self._max_batch), points

    def curves(self, now: float) -> list[StepCurve]:
        """Return the known step times by shape, measured sizes first. Callable from another thread."""
        sizes = dict.fromkeys([*self._measured, *list(self._learnt)])
        reported = itertools.islice(sizes, MAX_CURVES)
        return [StepCurve(shape, *self.limit_and_points(shape, now)) for shape in reported]
