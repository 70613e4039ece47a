"""What images cost in seconds of one worker, learnt from those that were made. Pure.

A worker with b tasks in its batch takes t(b) for a step instead of t(1), so that each of them goes s(b) = t(b) / t(1)
times slower than alone. A second that they share is 1 / s(b) seconds of work of each. Added up from a task's first
step to its picture, that is what it would have taken alone, with all that is no step: texts, decoding, files. So the
work of all tasks of a worker adds up to what the worker can do, whatever it was slow for.

Rule: a time is forgotten only for a newer one. When no worker is left, what was measured last stands.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from loadbalancer.scheduling.request_queue import Size
from loadbalancer.scheduling.worker_registry import Worker
from wire.messages import Heartbeat

Known = TypeVar("Known")
#: What one more finished task changes in a mean; the first ones change it more.
_WEIGHT = 0.05
#: All that is no step of an image is reckoned as this many times its steps at most, where time is short: one picture
#: that was slow for once must not end all that come after it.
_MOST_BESIDE = 1.0
#: Picture sizes that are remembered: requests may come in any.
_SIZES = 256


@dataclass(slots=True)
class _Mean:
    """A moving average."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(1.0 / self.count, _WEIGHT)


@dataclass(slots=True)
class _Meter:
    """A worker's clock that goes the slower, the more tasks there are in its batch."""

    worker: Worker
    at: float
    #: Seconds of work that a task would have had that was in the batch all along.
    work_s: float = 0.0
    #: What the clock showed when each task began.
    began: dict[str, float] = field(default_factory=dict)
    #: How much longer so many tasks take than one, by the heartbeat that was looked at last.
    beat: Heartbeat | None = None
    slower: dict[int, float] = field(default_factory=dict)


class ImageCosts:
    """One model's images. Seconds are of one worker that does one task at a time."""

    def __init__(self) -> None:
        #: Tasks of a full batch of the usual size on one worker; None until it was measured.
        self.batch_cap: int | None = None
        #: How much longer a task takes in it than alone.
        self.slow_down = 1.0
        self._usual: Size | None = None
        self._alone: OrderedDict[Size, float] = OrderedDict()
        self._made: OrderedDict[Size, _Mean] = OrderedDict()
        self._ratio = _Mean(1.0)
        self._meters: dict[str, _Meter] = {}
        self._where: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Costs of {len(self._alone)} sizes, {self._ratio.count} tasks made, {len(self._where)} in the making>"

    # ---- what is measured

    def refresh(self, workers: Sequence[Worker]) -> None:
        """Look anew at what the workers' steps take."""
        told = [worker for worker in workers if worker.beat.curves]
        if not told:
            return
        best = max(told, key=lambda worker: worker.beat.curves[0].cap)
        first = best.beat.curves[0]
        self._usual, self.batch_cap = (first.width, first.height), first.cap
        self.slow_down = _slow_down(best, self._usual, first.cap) or self.slow_down
        alone: defaultdict[Size, list[float]] = defaultdict(list)
        for worker in told:
            for curve in worker.beat.curves:
                if curve.points:
                    alone[curve.width, curve.height].append(min(curve.points)[1])
        for size, seconds in alone.items():
            _remember(self._alone, size, sum(seconds) / len(seconds))

    def began(self, task: str, worker: Worker, now: float) -> None:
        """The task is in the worker's batch."""
        self.left(task, now)
        meter = self._meters.setdefault(worker.id, _Meter(worker, now))
        self._advance(meter, now)
        meter.worker = worker
        meter.began[task] = meter.work_s
        self._where[task] = worker.id

    def left(self, task: str, now: float) -> float:
        """The task is in no batch any more. Gives the seconds of work that it had since it began; 0 if it had not."""
        worker = self._where.pop(task, None)
        if worker is None:
            return 0.0
        meter = self._meters[worker]
        self._advance(meter, now)
        work_s = meter.work_s - meter.began.pop(task)
        if not meter.began:
            del self._meters[worker]
        return work_s

    def learn(self, size: Size, steps: int, work_s: float) -> None:
        """A task of so many steps has taken so much work from its beginning to its picture."""
        if steps <= 0 or work_s <= 0:
            return
        mean = self._made.get(size) or _Mean()
        mean.add(work_s / steps)
        _remember(self._made, size, mean)
        alone_s = self._alone_s(size)
        if alone_s is not None:
            self._ratio.add(work_s / (steps * alone_s))

    def _advance(self, meter: _Meter, now: float) -> None:
        if meter.beat is not meter.worker.beat:
            meter.beat = meter.worker.beat
            meter.slower.clear()
        tasks = len(meter.began)
        if tasks not in meter.slower:
            meter.slower[tasks] = _slow_down(meter.worker, self._usual or (0, 0), tasks) or self._slower(tasks)
        meter.work_s += max(now - meter.at, 0.0) / meter.slower[tasks]
        meter.at = now

    def _slower(self, tasks: int) -> float:
        """How much longer so many tasks take than one, as a straight line, where the worker has told no curve."""
        if self.batch_cap is None or self.batch_cap < 2 or tasks < 2:
            return 1.0
        return 1.0 + (self.slow_down - 1.0) * (tasks - 1) / (self.batch_cap - 1)

    # ---- what follows

    @property
    def known(self) -> bool:
        """Whether any step was measured."""
        return bool(self._alone or self._made)

    def step_s(self, size: Size) -> float | None:
        """Seconds of a step of an image of this size, with its part of all that is no step; None if not measured."""
        made = self._made.get(size)
        if made is not None:
            return made.value
        alone_s = self._alone_s(size)
        return None if alone_s is None else alone_s * self._ratio.value

    def step_in_s(self, size: Size, worker: Worker, tasks: int) -> float | None:
        """Seconds of a step of an image of this size in the worker's batch of so many, with its part of all that is no
        step; None where the worker has not measured that size.
        """
        step_s, made, alone_s = worker.step_of(size, tasks), self._made.get(size), self._alone.get(size)
        if step_s <= 0:
            return None
        return step_s if made is None or alone_s is None else step_s * min(made.value / alone_s, 1.0 + _MOST_BESIDE)

    def _alone_s(self, size: Size) -> float | None:
        """Seconds of a step alone. A size that was not measured takes its pixels' part of the usual one."""
        seconds = self._alone.get(size)
        if seconds is not None or self._usual is None or self._usual not in self._alone:
            return seconds
        return self._alone[self._usual] * (size[0] * size[1]) / (self._usual[0] * self._usual[1])


def _slow_down(worker: Worker, size: Size, tasks: int) -> float:
    """t(tasks) / t(1) of the worker, at least 1; 0 if it has not measured it."""
    alone = worker.step_of(size, 1)
    return max(worker.step_of(size, max(tasks, 1)) / alone, 1.0) if alone > 0 else 0.0


def _remember(known: OrderedDict[Size, Known], size: Size, value: Known) -> None:
    """Keep it as the newest; the oldest gives way."""
    known[size] = value
    known.move_to_end(size)
    if len(known) > _SIZES:
        known.popitem(last=False)
