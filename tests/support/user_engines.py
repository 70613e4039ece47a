"""Runs a user's engine as the step loop does, without a process."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from configs.model_settings import Model
from wire.inputs import CallInputs, Part
from wire.messages import Assignment
from worker.batch_scheduler import Member, shape_of
from worker.engine import EngineRequest, TaskError
from worker.engines.user.engine import UserEngine
from worker.engines.user.rows import CallRow
from worker.fault_isolation import admit, result_now, step


class CallOutcome(NamedTuple):
    """What a client gets: a result or an error, and the chunks before it. JSON is parsed, other parts are bytes."""

    value: Any = None
    error: str = ""
    chunks: tuple[Any, ...] = ()


def user_engine(engine: Any, device: str = "cpu:0", **model: Any) -> UserEngine:
    """Return a loaded engine of this class."""
    made = UserEngine(Model(engine="tests:Engine", **model), device, engine)
    made.load()
    return made


def call(value: Any, *, stream: bool = False) -> EngineRequest:
    """Return a call whose input is the JSON of this value."""
    return EngineRequest(CallInputs((Part(),), stream), [json.dumps(value).encode()])


def run_calls(engine: UserEngine, requests: Sequence[EngineRequest], max_steps: int = 500) -> list[CallOutcome]:
    """Run all calls in one batch to their end, with the isolation of failing ones that the step loop has."""
    outcomes: dict[int, CallOutcome] = {}
    chunks: dict[int, list[Any]] = {}
    running: dict[int, Member] = {}
    for index, row in enumerate(admit(engine, requests)):
        if isinstance(row, Exception):
            outcomes[index] = CallOutcome(error=str(row))
        else:
            inputs = requests[index].inputs
            running[index] = Member(Assignment(str(index), 1, inputs), None, shape_of(inputs, None), row)
            chunks[index] = []
    for taken in itertools.count():
        if not running:
            break
        assert taken < max_steps, "the calls do not end"
        for member, error in step(engine, list(running.values())).failed:
            outcomes[int(member.assignment.task)] = CallOutcome(error=str(error))
        for index, member in list(running.items()):
            row = member.row
            assert isinstance(row, CallRow)
            chunks[index] += [parsed(part, frame) for _, part, frame in row.take_chunks()]
            if index not in outcomes and row.step < row.steps:
                continue
            if index not in outcomes:
                outcomes[index] = _outcome(engine, member, tuple(chunks[index]))
            engine.release(row)
            del running[index]
    return [outcomes[index] for index in range(len(requests))]


def parsed(part: Part, frame: bytes) -> Any:
    return msgspec.json.decode(frame) if part.media_type == "application/json" else frame


def _outcome(engine: UserEngine, member: Member, chunks: tuple[Any, ...]) -> CallOutcome:
    try:
        result = result_now(engine, member)
    except TaskError as error:
        return CallOutcome(error=str(error), chunks=chunks)
    values = [parsed(part, frame) for part, frame in zip(result.parts, result.frames, strict=True)]
    return CallOutcome(values[0] if len(values) == 1 else values or None, chunks=chunks)
