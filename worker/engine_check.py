"""`python -m worker --check-engine`: runs an engine without a server and reports what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from configs.model_settings import Model
from configs.settings import Settings
from configs.text import clip
from configs.user_engine import with_absolute_paths
from wire.inputs import CallInputs, Part
from wire.messages import Assignment
from worker.batch_scheduler import Member, shape_of
from worker.engine import EngineRequest, Row, TaskError, TaskResult
from worker.engines.user.engine import UserEngine
from worker.fault_isolation import admit, result_now, step
from worker.startup import StartFailed, start_failures

log = logging.getLogger(__name__)

#: Items of a full batch, for an engine that names no maximum.
_FULL_BATCH = 16
#: An engine that takes more steps does not end.
_MAX_STEPS = 10_000


@dataclasses.dataclass
class EngineReport:
    """Lines of the table, and what is wrong."""

    lines: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, text: str) -> None:
        self.lines.append((name, text))

    def __str__(self) -> str:
        width = max((len(name) for name, _ in self.lines), default=0)
        lines = [f"{name:<{width}}  {text}" for name, text in self.lines]
        return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in self.problems)])


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """Result or error of one item."""

    result: TaskResult | None
    error: str = ""
    chunks: int = 0

    def __str__(self) -> str:
        if self.result is None:
            return f"error: {self.error}"
        parts = [_shown(part, frame) for part, frame in zip(self.result.parts, self.result.frames, strict=True)]
        return f"{self.chunks} chunks" if self.chunks else ", ".join(parts) or "nothing"


def engine_to_check(settings: Settings, engine: str, name: str | None) -> Model:
    """Return the model of this engine, of this name, or the first with a user-written engine. Raises `ValueError`."""
    if engine:
        try:
            return Model.model_validate(with_absolute_paths({"engine": engine}, Path.cwd()))
        except ValidationError as error:
            raise ValueError(
                f"--check-engine {engine}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
            ) from None
    own = {each: model for each, model in settings.models.items() if model.task == "call" and model.engine != "sim"}
    if name is None and own:
        return next(iter(own.values()))
    if name not in own:
        known = f"models with one: {', '.join(own)}" if own else "no configured model has one"
        raise ValueError(f"--check-engine needs an engine of your own, or --config FILE and --model NAME; {known}")
    return own[name]


def check_engine(model: Model, device: str, given: str | None) -> EngineReport:
    """Load the engine and run one item, a full batch, a mixed batch and a move of its state.

    `given` is an item: JSON, or the path of a file (JSON, or raw bytes of any other type).
    """
    report = EngineReport()
    engine = UserEngine(model, device)
    report.add("engine", model.engine)
    try:
        with start_failures():
            started, memory = time.monotonic(), engine.memory_bytes()
            engine.fetch()
            imported = time.monotonic()
            engine.load()
            loaded = time.monotonic()
            samples = [_given_item(given)] if given is not None else engine.examples()
    except StartFailed as error:
        log.debug("the exception behind it", exc_info=error.__cause__)
        report.problems.append(str(error))
        return report
    info, used = engine.info(), engine.memory_bytes()
    report.add("class", f"{info.pipeline}, {engine.summary()}")
    report.add("import", f"{imported - started:.2f} s")
    report.add("load", f"{loaded - imported:.2f} s; {used / 1e6:.0f} MB in use ({(used - memory) / 1e6:+.0f} MB)")
    report.add("input", clip(info.input_schema, 200) or "anything")
    report.add("result", clip(info.output_schema, 200) or "anything")
    if samples:
        _run(report, engine, samples)
    else:
        report.problems.append("nothing was run: add a method example() to the class, or give an item with --input")
    try:
        with start_failures():
            engine.close()
    except StartFailed as error:
        report.problems.append(f"close failed: {error}")
    return report


def _run(report: EngineReport, engine: UserEngine, samples: Sequence[EngineRequest]) -> None:
    try:
        with start_failures():
            _, warm_s = _timed(engine.warm_up)
            report.add("warm-up", f"{warm_s * 1e3:.1f} ms")
    except StartFailed as error:
        log.debug("the exception behind it", exc_info=error.__cause__)
        report.problems.append(f"warm-up failed: {error}")
    [one], one_s = _timed(lambda: _run_all(engine, samples[:1]))
    report.add("one item", f"{one_s * 1e3:.2f} ms: {one}")
    if one.result is None:
        report.problems.append(f"one item failed: {one.error}")
        return
    if engine.info().streams:
        inputs = msgspec.structs.replace(samples[0].inputs, stream=True)
        [stream], seconds = _timed(lambda: _run_all(engine, [msgspec.structs.replace(samples[0], inputs=inputs)]))
        report.add("stream", f"{stream} in {seconds * 1e3:.2f} ms")
    if mismatch := engine.result_problem(one.result):
        report.problems.append(f"the result is not what the annotation says: {mismatch}")
    size = engine.limits().max_batch_size or _FULL_BATCH
    if size > 1:
        _run_batches(report, engine, samples, one, size)
    if engine.info().checkpoints:
        _move(report, engine, samples[0], one)


def _run_batches(
    report: EngineReport, engine: UserEngine, samples: Sequence[EngineRequest], one: _Outcome, size: int
) -> None:
    if raised := _batch_error(engine, [samples[0]] * size):
        report.problems.append(f"a batch of {size} equal items raises, and is then taken apart: {raised}")
    full, seconds = _timed(lambda: _run_all(engine, [samples[0]] * size))
    report.add("full batch", f"{size} items in {seconds * 1e3:.2f} ms, {seconds / size * 1e3:.3f} ms each")
    failed = [each.error for each in full if each.result is None]
    if failed:
        report.problems.append(f"{len(failed)} of {size} equal items failed in a batch: {failed[0]}")
    elif any(each.result != one.result for each in full):
        report.add("", "the results differ from that of one item (rounding, chance, or items that are mixed up)")
    broken = EngineRequest(CallInputs((Part(),)), [b"{broken"])
    mixed = [samples[index % len(samples)] for index in range(min(size, 4))]
    mixed[1:1] = [broken]
    found = _run_all(engine, mixed)
    report.add(
        "mixed batch", f"{len(mixed) - 1} items and a broken one: {sum(not each.error for each in found)} results"
    )
    if found[1].result is not None:
        report.problems.append("the broken item got a result")
    report.problems += [
        f"a broken item made another fail: {each.error}" for each in (found[0], *found[2:]) if each.error
    ]


def _batch_error(engine: UserEngine, requests: Sequence[EngineRequest]) -> str:
    """Return the exception of the first step of a batch, or an empty text."""
    rows = [row for row in engine.admit(requests) if not isinstance(row, TaskError)]
    try:
        engine.step(rows)
    except Exception as error:
        return str(error)
    finally:
        for row in rows:
            engine.release(row)
    return ""


def _move(report: EngineReport, engine: UserEngine, sample: EngineRequest, one: _Outcome) -> None:
    """Take one step, save the state, continue from the saved one, and compare."""
    [row] = engine.admit([sample])
    if isinstance(row, TaskError):
        return
    try:
        engine.step([row])
        save = engine.save(row)
        assert save is not None
        [moved] = _run_all(engine, [msgspec.structs.replace(sample, checkpoint=save())])
    except Exception as error:
        report.problems.append(f"the state cannot be saved and restored: {error}")
        return
    finally:
        engine.release(row)
    same = moved.result == one.result
    report.add("move", "a saved state goes on with the same result" if same else "a saved state gives another result")
    if not same:
        report.problems.append(f"the result after save and restore is {moved}, without it {one}")


def _run_all(engine: UserEngine, requests: Sequence[EngineRequest]) -> list[_Outcome]:
    """Run the calls in one batch, with the isolation of failing ones that a worker has."""
    outcomes: dict[int, _Outcome] = {}
    running: dict[int, Member] = {}
    chunks = dict.fromkeys(range(len(requests)), 0)
    for index, row in enumerate(admit(engine, requests)):
        if isinstance(row, Exception):
            outcomes[index] = _Outcome(None, str(row))
        else:
            running[index] = _member(index, requests[index], row)
    for _ in range(_MAX_STEPS):
        if not running:
            break
        outcome = step(engine, list(running.values()))
        for member, error in outcome.failed:
            outcomes[int(member.assignment.task)] = _Outcome(None, str(error))
        for index, member in list(running.items()):
            chunks[index] += len(member.row.take_chunks())
            if index not in outcomes and member.row.step >= member.row.steps:
                outcomes[index] = _result(engine, member, chunks[index])
            if index in outcomes:
                engine.release(running.pop(index).row)
    for index, member in running.items():
        outcomes[index] = _Outcome(None, f"it does not end within {_MAX_STEPS} steps")
        engine.release(member.row)
    return [outcomes[index] for index in range(len(requests))]


def _member(index: int, request: EngineRequest, row: Row) -> Member:
    return Member(Assignment(str(index), 1, request.inputs), None, shape_of(request.inputs, None), row)


def _result(engine: UserEngine, member: Member, chunks: int) -> _Outcome:
    try:
        return _Outcome(result_now(engine, member), chunks=chunks)
    except TaskError as error:
        return _Outcome(None, str(error))


def _given_item(text: str) -> EngineRequest:
    """Return a call of the item. Raises `StartFailed` if it is neither JSON nor a file."""
    file = Path(text)
    try:
        is_file = file.is_file()
    except (OSError, ValueError):
        is_file = False
    data = file.read_bytes() if is_file else text.encode()
    try:
        json.loads(data)
    except ValueError:
        if not is_file:
            raise StartFailed(f"--input {clip(text, 80)}: neither JSON nor a file") from None
        return EngineRequest(CallInputs((Part("application/octet-stream"),)), [data])
    return EngineRequest(CallInputs((Part(),)), [data])


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.monotonic()
    value = call()
    return value, time.monotonic() - started


def _shown(part: Part, frame: bytes) -> str:
    if part.media_type == "application/json":
        return clip(frame.decode(errors="replace"), 120)
    if part.dtype:
        return f"{part.name + ' ' if part.name else ''}{part.dtype} {list(part.shape)}"
    return f"{part.media_type}, {len(frame)} bytes"
