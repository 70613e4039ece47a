"""Measures the duration of steps by batch size before the first request, and caches it for the next start.

The best batch depends on the model, image size and device: the same model gains from 12 images per step at 512 x 512
and nothing from two at 1024 x 1024.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from configs.files import atomic_write
from configs.model_settings import Model
from configs.pipeline_defaults import with_defaults
from wire.inputs import NO_SHAPE, Shape
from worker.batch_scheduler import shape_of
from worker.batch_size import BUCKETS, BatchSizer, Points
from worker.engine import EngineRequest, OutOfMemory, PreparesSteps, Row, StepEngine, TaskError, TrimsMemory

log = logging.getLogger(__name__)

#: Timed steps of each batch in a sweep, after one that is not timed.
_STEPS = 3
_SWEEPS = 3
#: Steps of the tasks that show how much memory is needed.
_MEMORY_STEPS = 2
#: Time to wait for another worker that measures, beyond the time that measuring may take.
_LOCK_S = 5.0


def measure(
    engine: StepEngine, model: Model, sizer: BatchSizer, max_batch: int, cache: Path, device: str = "cpu"
) -> None:
    """Prepare and measure steps of 1 to `max_batch` tasks, of each of the engine's samples, for `sizer`.

    Results are read from `cache` if an engine with the same fingerprint has stored them. Steps that have to be prepared
    are prepared in any case: no request waits for a compiler. Workers on one GPU, named by `device`, measure in turn.
    """
    preparing = engine if isinstance(engine, PreparesSteps) and engine.prepares_steps else None
    prepare_ends = time.monotonic() + model.warm_up.prepare_s if preparing else 0.0
    for sample in engine.samples():
        shape = shape_of(sample.inputs, engine.key(sample))
        if model.warm_up.measure_s:
            points = _cached_points(engine, model, sample, shape, max_batch, cache, device, prepare_ends)
            if points:
                sizer.set_measured(shape, points)
            rates = ", ".join(f"{tasks}: {tasks / seconds:.3g}" for tasks, seconds in points if seconds > 0)
            limit = sizer.limit_and_points(shape, time.monotonic())[0]
            name = f"{shape.key}: " if shape.key else ""
            log.info("%sat most %d tasks share a step; steps/s by batch %s", name, limit, rates)
        if preparing:
            _prepare_all(engine, sample, sizer.limit(shape, time.monotonic()), prepare_ends)
    if preparing:
        preparing.end_preparation()
    if isinstance(engine, TrimsMemory) and engine.trim_memory():
        for sample in engine.samples():
            fit_memory(engine, sample, sizer)


def fit_memory(engine: StepEngine, sample: EngineRequest, sizer: BatchSizer) -> None:
    """Run the largest batch to its end and make an image beside it, so that the peak of memory is what a worker needs.

    Where that does not fit, the batch is limited to what does.
    """
    key = engine.key(sample)
    shape = shape_of(sample.inputs, key)
    few_steps = msgspec.structs.replace(sample, inputs=msgspec.structs.replace(sample.image, steps=_MEMORY_STEPS))
    while True:
        now = time.monotonic()
        tasks = sizer.limit(shape, now, key=key)
        try:
            _finish_one(engine, few_steps, tasks)
        except (OutOfMemory, TaskError) as error:
            log.info("%d tasks do not fit into memory with an image beside them: %s", tasks, error)
            if tasks == 1 or (isinstance(error, TaskError) and error.kind != "out_of_memory"):
                return
            sizer.on_out_of_memory(key, tasks * 3 // 4, now)
        else:
            return


def _finish_one(engine: StepEngine, sample: EngineRequest, tasks: int) -> None:
    """Step this many tasks to their end and make the result of the first."""
    rows = _admit_all(engine, [sample] * tasks)
    try:
        while unfinished := [row for row in rows if row.step < row.steps]:
            engine.step(unfinished)
        result = engine.render(rows[0])
        if callable(result):
            result()  # the device may still be stepping
    finally:
        for row in rows:
            engine.release(row)


def _prepare_all(engine: StepEngine, sample: EngineRequest, limit: int, ends: float) -> None:
    """Run a step of each batch up to the limit: guided, and those of other numbers of passes without guidance."""
    usual = [bucket for bucket in (*BUCKETS, limit) if bucket <= limit]
    plain = msgspec.structs.replace(sample, inputs=msgspec.structs.replace(sample.image, guidance_scale=1.0))
    # A guided task takes two passes: most numbers of passes are the same.
    steps = [(sample, tasks) for tasks in dict.fromkeys(usual)]
    steps += [(plain, tasks) for tasks in (1, 12) if tasks <= limit]
    for request, tasks in steps:
        if time.monotonic() > ends:
            log.warning("batches of %d and more are not compiled: warm_up.prepare_s has passed", tasks)
            return
        try:
            _run_step(engine, request, tasks)
        except (OutOfMemory, TaskError) as error:
            log.info("no steps of %d tasks: %s", tasks, error)


def _run_step(engine: StepEngine, sample: EngineRequest, tasks: int) -> None:
    """Run one step of this many tasks; the first of its shape is compiled or recorded, and allocates memory."""
    rows = _admit_all(engine, [sample] * tasks)
    try:
        engine.step(rows)
        engine.synchronize()
    finally:
        for row in rows:
            engine.release(row)


def default_shape(model: Model) -> Shape:
    """Return the shape of the model's usual task."""
    if model.task != "image":
        return NO_SHAPE
    width, height = with_defaults(model).defaults.sides
    return Shape(f"{width}x{height}", width * height)


def _cached_points(
    engine: StepEngine,
    model: Model,
    sample: EngineRequest,
    shape: Shape,
    max_batch: int,
    cache: Path,
    device: str,
    prepare_ends: float,
) -> Points:
    name = hashlib.sha256(f"{engine.fingerprint()} {shape.key} {max_batch}".encode()).hexdigest()[:24]
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{name}.json"
    # One at a time: workers that measure at the same time on one host would disturb each other.
    try:
        wait_s = model.warm_up.measure_s + _LOCK_S + max(prepare_ends - time.monotonic(), 0.0)
        with _lock(cache / f"{name}.lock", wait_s):
            try:
                return msgspec.json.decode(file.read_bytes(), type=Points)
            except (OSError, msgspec.DecodeError):
                # Any worker that measures on this GPU takes time and memory from this one.
                turn = _lock(cache / f"{device}.lock", wait_s) if device.startswith("cuda") else nullcontext()
                with turn:
                    points, is_complete = _points(engine, model, sample, max_batch, prepare_ends)
                if is_complete:  # otherwise the next start may get further
                    atomic_write(file, msgspec.json.encode(points))
                return points
    except TimeoutError:
        log.warning("another worker is still measuring; this one learns from its requests")
        return []


def _lock(file: Path, timeout_s: float) -> AbstractContextManager[object]:
    """Return a lock between processes, which raises `TimeoutError`; none in an environment without filelock."""
    try:
        from filelock import FileLock
    except ImportError:  # in the environment of an engine: workers that start at once may measure longer times
        return nullcontext()
    return FileLock(file, timeout=timeout_s)


def _points(
    engine: StepEngine, model: Model, sample: EngineRequest, max_batch: int, prepare_ends: float
) -> tuple[Points, bool]:
    """Return the shortest step times by batch, as far as time, memory and gain allow, and whether time sufficed.

    Sweeps several times if there is time, so that a slow moment of the machine does not count as a slow batch.
    """
    sweep = _Sweep(model.warm_up.measure_s, prepare_ends)
    shortest = dict(sweep.run(engine, model, sample, max_batch))
    sweep_s = sweep.measured_s
    for _ in range(_SWEEPS - 1):
        if sweep.measured_s + sweep_s > model.warm_up.measure_s:
            break
        started = time.monotonic()
        shortest = {tasks: min(known, _step_seconds(engine, sample, tasks)) for tasks, known in shortest.items()}
        sweep.measured_s += time.monotonic() - started
    return list(shortest.items()), sweep.is_complete


class _Sweep:
    """A first pass over the batches. The first step of each counts as preparation, the others as measuring."""

    def __init__(self, measure_s: float, prepare_ends: float) -> None:
        self._measure_s = measure_s
        self._prepare_ends = prepare_ends
        self.measured_s = 0.0
        #: False if larger batches were left out for want of time.
        self.is_complete = True

    def run(
        self, engine: StepEngine, model: Model, sample: EngineRequest, max_batch: int
    ) -> Iterator[tuple[int, float]]:
        """Yield batch by batch, until time or memory is used up or two batches in a row gained nothing."""
        rate, flat = 0.0, 0
        batches = sorted({bucket for bucket in BUCKETS if bucket <= max_batch} | {max_batch})
        for tasks in batches:
            try:
                prepare_s = self._prepare(engine, sample, tasks)
                started = time.monotonic()
                seconds = _step_seconds(engine, sample, tasks)
            except (OutOfMemory, TaskError) as error:
                log.info("no steps of %d tasks: %s", tasks, error)
                return
            spent = prepare_s + time.monotonic() - started
            self.measured_s += spent
            yield tasks, seconds
            flat = 0 if tasks / seconds > (1 + model.batching.min_gain) * rate else flat + 1
            rate = max(rate, tasks / seconds)
            if flat == 2:
                return
            if self.measured_s + 2 * spent > self._measure_s:
                self.is_complete = tasks == batches[-1]
                return

    def _prepare(self, engine: StepEngine, sample: EngineRequest, tasks: int) -> float:
        """Run a first step. Return the seconds of it that count as measuring: all once preparation had its time."""
        started = time.monotonic()
        if started < self._prepare_ends:
            _run_step(engine, sample, tasks)
        return max(time.monotonic() - max(started, self._prepare_ends), 0.0) if self._prepare_ends else 0.0


def _step_seconds(engine: StepEngine, sample: EngineRequest, tasks: int) -> float:
    """Return the shortest of a few steps of `tasks` tasks."""
    rows = _admit_all(engine, [sample] * tasks)
    try:
        times: list[float] = []
        for _ in range(_STEPS + 1):
            if any(row.step >= row.steps for row in rows):  # tasks of few steps: go on with new ones
                for row in rows:
                    engine.release(row)
                rows = _admit_all(engine, [sample] * tasks)
            started = time.monotonic()
            engine.step(rows)
            engine.synchronize()
            times.append(time.monotonic() - started)
        return max(min(times[1:]), 1e-9)
    finally:
        for row in rows:
            engine.release(row)


def _admit_all(engine: StepEngine, requests: Sequence[EngineRequest]) -> list[Row]:
    rows: list[Row] = []
    error: TaskError | None = None
    for row in engine.admit(requests):
        if isinstance(row, TaskError):
            error = row
        else:
            rows.append(row)
    if error is not None:
        for row in rows:
            engine.release(row)
        raise error
    return rows
