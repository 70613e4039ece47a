"""How many tasks may share a step: as many as still gain something, are not too slow, and fit. Pure.

A step's cost by batch is measured at the start (`measure`) and refined by every step since. Larger batches are used as
long as each brings more images per second by `min_gain`, which is where a device saturates: past that they would only
make every task of the batch wait longer.
"""

from __future__ import annotations

from collections.abc import Hashable

from wire.messages import ImageInputs, StepCurve

#: The batches that are measured, and that GPU kernels are prepared for.
BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32)
#: Steps seen at a batch before it counts: the first choose kernels and take memory.
_SEEN = 3
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
        #: Per size and batch: least seconds of a step, and how many were seen. The least, because noise only adds:
        #: a mean would let one slow minute make batches small for good.
        self._seen: dict[Size, dict[int, tuple[float, int]]] = {}
        self._fits: dict[Hashable, tuple[int, float]] = {}

    def observe(self, size: Size, tasks: int, seconds: float, times: int = 1) -> None:
        """A step of so many tasks took so long; `times` says how many such steps the figure stands for."""
        if tasks in BUCKETS or tasks == self._most:
            least, seen = self._seen.setdefault(size, {}).get(tasks, (seconds, 0))
            self._seen[size][tasks] = (min(least, seconds), seen + times)

    def did_not_fit(self, key: Hashable, fits: int, now: float) -> None:
        """A step of this key was out of memory; one of `fits` tasks is what was left."""
        self._fits[key] = (max(fits, 1), now + _RETRY_S)

    def of(self, key: Hashable, size: Size, now: float) -> int:
        """Most tasks of this key in one step."""
        self._fits = {key: (fits, until) for key, (fits, until) in self._fits.items() if until > now}
        return min(self._fits.get(key, (self._most, 0.0))[0], self.of_size(size))

    def of_any(self, size: Size, now: float) -> int:
        """Tasks that surely have room, whatever their key: what an idle worker may promise."""
        return min([self.of(key, size, now) for key in list(self._fits)], default=self.of_size(size))

    def of_size(self, size: Size) -> int:
        """Most tasks of this size in one step, memory aside.

        While the largest batch that was seen is still the best, the next larger one may be tried.
        """
        points = self._points(size)
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

    def curves(self) -> list[StepCurve]:
        """What is known, by size."""
        return [StepCurve(*size, self.of_size(size), self._points(size)) for size in list(self._seen)]

    def _points(self, size: Size) -> list[tuple[int, float]]:
        seen = sorted(self._seen.get(size, {}).items())
        return [(tasks, seconds) for tasks, (seconds, times) in seen if times >= _SEEN and seconds > 0]
