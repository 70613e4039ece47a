"""The measured cost of tasks, in seconds of one worker. Pure.

A worker with b tasks in its batch takes t(b) for a step instead of t(1), so each task runs s(b) = t(b) / t(1) times
slower than in a batch of its own. One second of such a batch is 1 / s(b) seconds of work for each task. The sum from a
task's first step to its result is the time that it would have taken without others, with everything that is not a step:
text encoding, decoding, files. The work of all tasks of a worker therefore adds up to the capacity of the worker.

Only a newer measurement replaces a measurement. The last one stays valid while no worker is connected.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadbalancer.scheduling.step_times import full_batch_step_cost
from loadbalancer.scheduling.worker_pool import Worker, remember
from wire.inputs import NO_SHAPE, Shape
from wire.messages import Heartbeat

#: Weight of one more finished task in a mean; the first ones weigh more.
_MEAN_WEIGHT = 0.05
#: Bounds the time of a task outside of its steps, as a multiple of its steps, where time is short: one slow task
#: must not expire all that follow.
_MAX_OVERHEAD = 1.0
#: Cost of every step until one was measured: only the number of steps counts then.
_UNMEASURED_STEP_S = 1.0


@dataclass(slots=True)
class _RunningMean:
    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(1.0 / self.count, _MEAN_WEIGHT)


@dataclass(slots=True)
class _WorkMeter:
    """Integrates the work per task of one worker; it advances more slowly the more tasks share the batch."""

    worker: Worker
    updated_at: float
    #: Seconds of work of a task that has been in the batch all along.
    work_s: float = 0.0
    #: Reading of `work_s` at the start of each task.
    start_readings: dict[str, float] = field(default_factory=dict)
    #: Slowdown by number of tasks, as of this heartbeat.
    heartbeat: Heartbeat | None = None
    slowdowns: dict[int, float] = field(default_factory=dict)


class CostModel:
    """Costs of one model's tasks. Seconds are of a worker that runs one task at a time, unless noted otherwise."""

    def __init__(self) -> None:
        #: Tasks of a full batch of the usual shape on one worker; None until it was measured.
        self.batch_cap: int | None = None
        #: Ratio of a task's time in a full batch to its time in a batch of its own.
        self.batch_slowdown = 1.0
        self._usual: Shape | None = None
        #: Seconds of a step in a batch of one, and per step of finished tasks; the latest measured ones come last.
        self._single_s: dict[Shape, float] = {}
        self._finished_s: dict[Shape, _RunningMean] = {}
        self._overhead = _RunningMean(1.0)
        self._meters: dict[str, _WorkMeter] = {}
        self._worker_of: dict[str, str] = {}
        self._workers: Sequence[Worker] = ()
        self._usual_full_batch_s: float | None = None
        self._full_batch_s: dict[Shape, float] = {}
        #: Those of the latest update.
        self._heartbeats: Sequence[Heartbeat] = ()

    def __repr__(self) -> str:
        shapes, finished, running = len(self._single_s), self._overhead.count, len(self._worker_of)
        return f"<CostModel {shapes} shapes measured, {finished} tasks finished, {running} running>"

    # ---- measurements

    def update(self, workers: Sequence[Worker]) -> float | None:
        """Read the workers' latest step times. The first measurement returns the change of `full_batch_step_s`."""
        heartbeats = [worker.heartbeat for worker in workers]
        if len(heartbeats) == len(self._heartbeats) and all(map(operator.is_, heartbeats, self._heartbeats)):
            return None
        self._heartbeats = heartbeats
        self._update_curves([worker for worker in workers if worker.heartbeat.curves])
        usual_s = full_batch_step_cost((worker.step_times for worker in workers), NO_SHAPE)
        if not usual_s:
            return None
        is_first = self._usual_full_batch_s is None
        self._workers, self._usual_full_batch_s = workers, usual_s
        self._full_batch_s.clear()
        return usual_s / _UNMEASURED_STEP_S if is_first else None

    def _update_curves(self, workers: Sequence[Worker]) -> None:
        if not workers:
            return
        largest = max(workers, key=lambda worker: worker.heartbeat.curves[0].cap)
        first = largest.heartbeat.curves[0]
        self._usual, self.batch_cap = first.shape, first.cap
        self.batch_slowdown = _slowdown(largest, self._usual, first.cap) or self.batch_slowdown
        single: defaultdict[Shape, list[float]] = defaultdict(list)
        for worker in workers:
            for curve in worker.heartbeat.curves:
                if curve.points:
                    single[curve.shape].append(min(curve.points)[1])
        for shape, seconds in single.items():
            remember(self._single_s, shape, sum(seconds) / len(seconds))

    def on_start(self, task: str, worker: Worker, now: float) -> None:
        """Start to measure the work of a task in the worker's batch."""
        if task in self._worker_of:
            self.on_stop(task, now)
        meter = self._meters.get(worker.id)
        if meter is None:
            meter = self._meters[worker.id] = _WorkMeter(worker, now)
        self._advance(meter, now)
        meter.worker = worker
        meter.start_readings[task] = meter.work_s
        self._worker_of[task] = worker.id

    def on_stop(self, task: str, now: float, sample: tuple[Shape, int] | None = None) -> float:
        """Return the seconds of work since the task started; 0 if it did not run.

        `sample`: shape and steps of a task that has finished and run all the time. Its work is a sample of their cost.
        """
        worker = self._worker_of.pop(task, None)
        if worker is None:
            return 0.0
        meter = self._meters[worker]
        self._advance(meter, now)
        work_s = meter.work_s - meter.start_readings.pop(task)
        if not meter.start_readings:
            del self._meters[worker]
        if sample is not None and sample[1] > 0 and work_s > 0:
            shape, steps = sample
            finished = self._finished_s.pop(shape, None)
            if finished is None:
                finished = _RunningMean()
                remember(self._finished_s, shape, finished)
            else:  # the latest measured ones come last
                self._finished_s[shape] = finished
            finished.add(work_s / steps)
            single_s = self._single_s.get(shape) or self._scaled_step_s(shape)
            if single_s:
                self._overhead.add(work_s / (steps * single_s))
        return work_s

    def _advance(self, meter: _WorkMeter, now: float) -> None:
        if meter.heartbeat is not meter.worker.heartbeat:
            meter.heartbeat = meter.worker.heartbeat
            meter.slowdowns.clear()
        tasks = len(meter.start_readings)
        if tasks > 1 and tasks not in meter.slowdowns:
            slowdown = _slowdown(meter.worker, self._usual or NO_SHAPE, tasks)
            if not slowdown:  # the worker has reported no curve: assume a straight line
                span = (self.batch_cap or 1) - 1
                slowdown = 1.0 + (self.batch_slowdown - 1.0) * (tasks - 1) / span if span > 0 else 1.0
            meter.slowdowns[tasks] = slowdown
        meter.work_s += max(now - meter.updated_at, 0.0) / meter.slowdowns.get(tasks, 1.0)  # 1: alone
        meter.updated_at = now

    # ---- costs

    @property
    def is_measured(self) -> bool:
        return bool(self._single_s or self._finished_s)

    def full_batch_step_s(self, shape: Shape) -> float:
        """Return the seconds of a worker per forward pass in full batches; constant until the next heartbeat."""
        if self._usual_full_batch_s is None:
            return _UNMEASURED_STEP_S
        step_s = self._full_batch_s.get(shape)
        if step_s is None:
            times = (worker.step_times for worker in self._workers)
            step_s = full_batch_step_cost(times, shape) or self._usual_full_batch_s
            remember(self._full_batch_s, shape, step_s)
        return step_s

    def single_step_s(self, shape: Shape) -> float | None:
        """Return the measured seconds of a step of a task that runs alone; None if not measured."""
        return self._single_s.get(shape) or self._scaled_step_s(shape)

    def work_s(self, shape: Shape, steps: int) -> float | None:
        """Return the seconds of work of so many steps with their part of the overhead; None if not measured."""
        finished = self._finished_s.get(shape)
        if finished is not None:
            return steps * finished.value
        single_s = self._single_s.get(shape) or self._scaled_step_s(shape)
        return None if single_s is None else steps * single_s * self._overhead.value

    def batch_step_s(self, shape: Shape, worker: Worker, tasks: int) -> float | None:
        """Return the seconds per step in the worker's batch of `tasks`, with its part of the overhead.

        None where the worker has not measured that shape.
        """
        step_s = worker.step_times.batch_step_s(shape, tasks)
        return step_s * self.overhead(shape) if step_s > 0 else None

    def overhead(self, shape: Shape) -> float:
        """Return the ratio of a task's time to that of its steps, bounded; 1 if not measured."""
        finished, single_s = self._finished_s.get(shape), self._single_s.get(shape)
        return 1.0 if finished is None or not single_s else min(finished.value / single_s, 1.0 + _MAX_OVERHEAD)

    def _scaled_step_s(self, shape: Shape) -> float | None:
        """Return the seconds of a step in a batch of one, scaled by volume from the usual shape; None if unknown."""
        if self._usual is None or self._usual not in self._single_s:
            return None
        return self._single_s[self._usual] * shape.volume / self._usual.volume


def _slowdown(worker: Worker, shape: Shape, tasks: int) -> float:
    """Return t(tasks) / t(1) of the worker, at least 1; 0 if it has not measured it."""
    single_s = worker.step_times.batch_step_s(shape, 1)
    return max(worker.step_times.batch_step_s(shape, max(tasks, 1)) / single_s, 1.0) if single_s > 0 else 0.0
