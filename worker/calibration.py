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
from configs.pipeline_defaults import with_defaults
from configs.settings import Model
from wire.messages import NO_SHAPE, Shape
from worker.batch_scheduler import shape_of
from worker.batch_size import BUCKETS, BatchSizer, Points
from worker.engine import EngineRequest, OutOfMemory, Row, StepEngine, TaskError

log = logging.getLogger(__name__)

#: Timed steps of each batch in a sweep, after one that is not timed.
_STEPS = 3
_SWEEPS = 3
#: Time to wait for another worker that measures, beyond the time that measuring may take.
_LOCK_S = 5.0


def measure(engine: StepEngine, model: Model, sizer: BatchSizer, max_batch: int, cache: Path) -> None:
    """Measure steps of 1 to `max_batch` tasks, of each of the engine's samples, for `sizer`.

    Results are read from `cache` if an engine with the same fingerprint has stored them.
    """
    if not model.warm_up.measure_s:
        return
    for sample in engine.samples():
        shape = shape_of(sample.inputs, engine.key(sample))
        points = _cached_points(engine, model, sample, shape, max_batch, cache)
        if points:
            sizer.set_measured(shape, points)
        rates = ", ".join(f"{tasks}: {tasks / seconds:.3g}" for tasks, seconds in points if seconds > 0)
        limit = sizer.limit_and_points(shape, time.monotonic())[0]
        log.info("%s: at max_batch %d tasks share a step; steps/s by batch %s", shape.key, limit, rates)


def default_shape(model: Model) -> Shape:
    """Return the shape of the model's usual task."""
    if model.task != "image":
        return NO_SHAPE
    width, height = with_defaults(model).defaults.sides
    return Shape(f"{width}x{height}", width * height)


def _cached_points(
    engine: StepEngine, model: Model, sample: EngineRequest, shape: Shape, max_batch: int, cache: Path
) -> Points:
    name = hashlib.sha256(f"{engine.fingerprint()} {shape.key} {max_batch}".encode()).hexdigest()[:24]
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{name}.json"
    # One at a time: workers that measure at the same time on one host would disturb each other.
    try:
        with _lock(cache / f"{name}.lock", model.warm_up.measure_s + _LOCK_S):
            try:
                return msgspec.json.decode(file.read_bytes(), type=Points)
            except (OSError, msgspec.DecodeError):
                points = _points(engine, model, sample, max_batch)
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


def _points(engine: StepEngine, model: Model, sample: EngineRequest, max_batch: int) -> Points:
    """Return the shortest step times by batch, as far as time, memory and gain allow.

    Sweeps several times if there is time, so that a slow moment of the machine does not count as a slow batch.
    """
    started = time.monotonic()
    ends = started + model.warm_up.measure_s
    shortest = dict(_sweep(engine, model, sample, max_batch, ends))
    sweep_s = time.monotonic() - started
    for _ in range(_SWEEPS - 1):
        if time.monotonic() + sweep_s > ends:
            break
        shortest = {tasks: min(known, _step_seconds(engine, sample, tasks)) for tasks, known in shortest.items()}
    return list(shortest.items())


def _sweep(
    engine: StepEngine, model: Model, sample: EngineRequest, max_batch: int, ends: float
) -> Iterator[tuple[int, float]]:
    """Yield batch by batch, until time or memory is used up or two batches in a row gained nothing."""
    rate, flat = 0.0, 0
    for tasks in sorted({bucket for bucket in BUCKETS if bucket <= max_batch} | {max_batch}):
        started = time.monotonic()
        try:
            seconds = _step_seconds(engine, sample, tasks)
        except (OutOfMemory, TaskError) as error:
            log.info("no steps of %d tasks: %s", tasks, error)
            return
        yield tasks, seconds
        flat = 0 if tasks / seconds > (1 + model.batching.min_gain) * rate else flat + 1
        rate = max(rate, tasks / seconds)
        now = time.monotonic()
        if flat == 2 or now + 2 * (now - started) > ends:
            return


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
