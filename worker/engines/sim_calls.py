"""A simulated accelerator for calls: after a step of t0 + t1 * b seconds, a call returns its own values.

A stream has a step and a chunk for each item of its JSON list. Configured texts anywhere in a call make it fail, as
prompts do in `sim`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import msgspec

from wire.inputs import CallInputs, Part
from wire.messages import EngineInfo
from worker.engine import (
    BatchKey,
    Checkpoint,
    DeviceLost,
    EngineLimits,
    EngineRequest,
    OutOfMemory,
    ResultChunk,
    Row,
    TaskError,
    TaskResult,
)
from worker.engines.sleeping_engine import SleepingEngine

_STREAM_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
#: Any JSON.
_SCHEMA = "{}"


@dataclass
class SimCallRow:
    """A call, and the chunks of its stream that are not due yet."""

    parts: tuple[Part, ...]
    frames: Sequence[bytes]
    items: list[bytes]
    step: int = 0
    steps: int = 1
    chunks: list[ResultChunk] = field(default_factory=list)
    collected_bytes: int = 0

    def take_chunks(self) -> Sequence[ResultChunk]:
        """Remove and return the chunks of the last steps."""
        taken, self.chunks = self.chunks, []
        return taken

    def take_tokens(self) -> None:
        """It generates no text."""


class SimCallEngine(SleepingEngine):
    """Implements `StepEngine` by sleeping."""

    def info(self) -> EngineInfo:
        return EngineInfo(
            "simulated",
            "sim",
            modes=(),
            unit="call",
            streams=True,
            repeatable=True,
            input_schema=_SCHEMA,
            output_schema=_SCHEMA,
        )

    def limits(self) -> EngineLimits:
        return EngineLimits()

    def fingerprint(self) -> str:
        return f"sim calls {self._sim.t0_s} {self._sim.t1_s} {self._sim.memory_tasks}"

    def key(self, request: EngineRequest) -> BatchKey:
        if not isinstance(request.inputs, CallInputs):
            raise TaskError("invalid", "this model takes calls and generates no images")
        return None

    def samples(self) -> list[EngineRequest]:
        return [EngineRequest(CallInputs((Part(),)), [b"null"])]

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        return [_admit(cast("CallInputs", task.inputs), task.sources) for task in tasks]

    def step(self, rows: Sequence[Row]) -> None:
        """Sleep t0 + t1 * b. Configured texts make it fail, hang, crash or lose its device."""
        sim, own = self._sim, cast("Sequence[SimCallRow]", rows)
        if sim.memory_tasks is not None and len(rows) > sim.memory_tasks:
            raise OutOfMemory(f"{len(rows)} tasks were asked for, {sim.memory_tasks} fit")
        for row in own:
            if _has(row, sim.crash_prompt):
                os._exit(70)
            if _has(row, sim.device_prompt):
                raise DeviceLost("a lost device on demand")
            if _has(row, sim.fail_prompt):
                raise RuntimeError("a failure on demand")
            while _has(row, sim.stuck_prompt):
                time.sleep(60)
        time.sleep(sim.t0_s + sim.t1_s * len(rows))
        for row in own:
            if row.items:
                row.chunks.append(ResultChunk(row.step, row.parts[0], row.items[row.step]))
            row.step += 1

    def synchronize(self) -> None:
        """Steps are synchronous."""

    def render(self, row: Row) -> Callable[[], TaskResult]:
        """Return the values of the call; nothing after the chunks of a stream."""
        assert isinstance(row, SimCallRow)
        if _has(row, self._sim.nan_prompt):
            raise TaskError("invalid", "the value is not allowed, on demand")
        result = TaskResult((), []) if row.items else TaskResult(row.parts, row.frames)
        return lambda: result

    def save(self, row: Row) -> Callable[[], Checkpoint] | None:
        del row
        return None


def _admit(inputs: CallInputs, frames: Sequence[bytes]) -> Row | TaskError:
    if len(frames) != len(inputs.parts):
        return TaskError("invalid", f"the call has {len(inputs.parts)} parts and {len(frames)} frames")
    if not inputs.stream:
        return SimCallRow(inputs.parts, frames, [])
    try:
        items = [bytes(item) for item in _STREAM_ITEMS.decode(frames[0])]
    except (msgspec.MsgspecError, IndexError):
        items = []
    return SimCallRow(inputs.parts, frames, items, steps=max(len(items), 1))


def _has(row: SimCallRow, text: str) -> bool:
    return any(text.encode() in frame for frame in row.frames)
