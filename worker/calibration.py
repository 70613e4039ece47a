"""Measures what a step costs by batch before the first request comes, and keeps it for the next start.

A batch cap must be measured for each model, picture size and device: the same model gains from 12 images per step at
512 x 512 and nothing from two at 1024 x 1024.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from configs.settings import Model
from wire.messages import ImageInputs
from worker.batch_size import BUCKETS, Caps, Size
from worker.engine import OutOfMemory, Row, StepEngine, TaskError, Wanted

log = logging.getLogger(__name__)

#: Timed steps of each batch in a sweep, after one that is not timed.
_STEPS = 3
_SWEEPS = 3
#: A machine that measures already is waited for so much longer than measuring may take.
_LOCK_S = 5.0

Points = list[tuple[int, float]]


def measure(engine: StepEngine, model: Model, caps: Caps, most: int, cache: Path) -> None:
    """Tell `caps` what steps of 1 to `most` tasks cost, at the usual size and those configured.

    Measured figures are read from `cache`, where an engine of the same fingerprint has left them.
    """
    budget_s = model.warm_up.measure_s
    if not budget_s or "text" not in engine.info().modes:
        return
    for text in dict.fromkeys((model.defaults.size, *model.warm_up.sizes)):
        width, height = map(int, text.split("x"))
        points = _remembered(engine, model, (width, height), most, cache)
        if points:
            caps.measured((width, height), points)
        pace = ", ".join(f"{tasks}: {tasks / seconds:.3g}" for tasks, seconds in points if seconds > 0)
        cap = caps.of_size((width, height), time.monotonic())
        log.info("%s: at most %d images share a step; steps/s by batch %s", text, cap, pace)


def _remembered(engine: StepEngine, model: Model, size: Size, most: int, cache: Path) -> Points:
    name = hashlib.sha256(f"{engine.fingerprint()} {size} {most}".encode()).hexdigest()[:24]
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{name}.json"
    # One at a time: workers that measure side by side on the same cores or host would measure each other.
    try:
        with FileLock(cache / f"{name}.lock", timeout=model.warm_up.measure_s + _LOCK_S):
            try:
                return msgspec.json.decode(file.read_bytes(), type=Points)
            except (OSError, msgspec.DecodeError):
                points = _points(engine, model, size, most)
                file.write_bytes(msgspec.json.encode(points))
                return points
    except Timeout:
        log.warning("another worker takes long to measure; this one learns from its requests")
        return []


def _points(engine: StepEngine, model: Model, size: Size, most: int) -> Points:
    """(tasks, least seconds of a step), as far as time, memory and gain reach.

    Swept over several times where there is time for it, so that a slow moment of the machine does not pass for a slow
    batch.
    """
    began = time.monotonic()
    ends = began + model.warm_up.measure_s
    least = dict(_sweep(engine, model, size, most, ends))
    sweep_s = time.monotonic() - began
    for _ in range(_SWEEPS - 1):
        if time.monotonic() + sweep_s > ends:
            break
        least = {tasks: min(known, _seconds(engine, model, size, tasks)) for tasks, known in least.items()}
    return list(least.items())


def _sweep(engine: StepEngine, model: Model, size: Size, most: int, ends: float) -> Iterator[tuple[int, float]]:
    """Batch by batch, until the time is up, memory is full, or two in a row gained nothing."""
    pace, flat = 0.0, 0
    for tasks in sorted({bucket for bucket in BUCKETS if bucket <= most} | {most}):
        began = time.monotonic()
        try:
            seconds = _seconds(engine, model, size, tasks)
        except (OutOfMemory, TaskError) as error:
            log.info("no steps of %d images at %dx%d: %s", tasks, *size, error)
            return
        yield tasks, seconds
        flat = 0 if tasks / seconds > (1 + model.batching.min_gain) * pace else flat + 1
        pace = max(pace, tasks / seconds)
        now = time.monotonic()
        if flat == 2 or now + 2 * (now - began) > ends:
            return


def _seconds(engine: StepEngine, model: Model, size: Size, tasks: int) -> float:
    """The shortest of a few steps of so many tasks, all with the model's defaults."""
    defaults = model.defaults
    steps = max(defaults.steps, _STEPS + 2)
    inputs = ImageInputs("", *size, steps, defaults.guidance_scale, seed=0, scheduler=defaults.scheduler)
    rows = _admitted(engine, [Wanted(msgspec.structs.replace(inputs, seed=seed)) for seed in range(tasks)])
    try:
        times: list[float] = []
        for _ in range(_STEPS + 1):
            began = time.monotonic()
            engine.step(rows)
            engine.synchronize()
            times.append(time.monotonic() - began)
        return max(min(times[1:]), 1e-9)
    finally:
        for row in rows:
            engine.release(row)


def _admitted(engine: StepEngine, wanted: Sequence[Wanted]) -> list[Row]:
    rows: list[Row] = []
    refused: TaskError | None = None
    for row in engine.admit(wanted):
        if isinstance(row, TaskError):
            refused = row
        else:
            rows.append(row)
    if refused is not None:
        for row in rows:
            engine.release(row)
        raise refused
    return rows
