"""Calls the engine so that a failure ends only its own task: halving finds the tasks that break a batch.

All functions rely on the engine's promise that a call which raises has changed nothing. `DeviceLost` passes through,
because no retry can help.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from configs.text import exception_line
from worker.batch_scheduler import Member
from worker.engine import (
    Checkpoint,
    DeviceLost,
    EngineRequest,
    OutOfMemory,
    Row,
    StepEngine,
    TaskError,
    TaskResult,
)
from worker.task_fields import task_fields

log = logging.getLogger(__name__)

Saved = TypeVar("Saved")


@dataclass
class StepOutcome:
    """The result of a step for each of its members."""

    advanced: list[Member] = field(default_factory=list)
    failed: list[tuple[Member, TaskError]] = field(default_factory=list)
    #: Did not fit into memory beside the others.
    evicted: list[Member] = field(default_factory=list)

    def __add__(self, other: StepOutcome) -> StepOutcome:
        return StepOutcome(self.advanced + other.advanced, self.failed + other.failed, self.evicted + other.evicted)


def step(engine: StepEngine, members: Sequence[Member]) -> StepOutcome:
    """Advance `members`, oldest first, by one step. When memory runs out, the newest are evicted."""
    half = len(members) // 2
    try:
        engine.step([member.row for member in members])
    except DeviceLost:
        raise
    except OutOfMemory as error:
        if half:
            log.warning("a step of %d tasks is out of memory: %s", len(members), error)
            fewer = max(len(members) * 3 // 4, 1)  # halving would leave memory unused for long
            return step(engine, members[:fewer]) + StepOutcome(evicted=list(members[fewer:]))
        return StepOutcome(failed=[(members[0], TaskError("out_of_memory", str(error)))])
    except Exception as error:
        if half:
            return step(engine, members[:half]) + step(engine, members[half:])
        log.exception("task %s: its step failed", members[0].assignment.task, extra=task_fields(members[0].assignment))
        task_error = error if isinstance(error, TaskError) else TaskError("error", f"step failed: {error}")
        return StepOutcome(failed=[(members[0], task_error)])
    return StepOutcome(advanced=list(members))


def key_error(error: Exception) -> TaskError:
    """Return the error of a task whose batch key could not be made."""
    if isinstance(error, TaskError):
        return error
    log.error("a task has no batch key", exc_info=error)
    return TaskError("error", f"the request could not be prepared: {error}")


def admit(engine: StepEngine, requests: Sequence[EngineRequest]) -> list[Row | TaskError | OutOfMemory]:
    """Return a row or an error for each request. `OutOfMemory`: it may fit when others have left.

    A request whose checkpoint cannot be used, such as one of another version, starts from step 0.
    """
    if not requests:
        return []
    try:
        rows: list[Row | TaskError | OutOfMemory] = [*engine.admit(requests)]
    except DeviceLost:
        raise
    except Exception as error:
        if len(requests) > 1:
            return [row for request in requests for row in admit(engine, [request])]
        if isinstance(error, OutOfMemory):
            return [error]
        log.exception("a task cannot be admitted")
        return [TaskError("error", f"the request could not be prepared: {error}")]
    for index, (request, row) in enumerate(zip(requests, rows, strict=True)):
        if request.checkpoint is not None and isinstance(row, TaskError):
            log.warning("the checkpoint at step %d cannot be used, starting again: %s", request.checkpoint.step, row)
            [rows[index]] = admit(engine, [msgspec.structs.replace(request, checkpoint=None, prepared=None)])
    return rows


def render(engine: StepEngine, member: Member) -> TaskResult | TaskError | Callable[[], TaskResult]:
    """Return what the engine returns for the row, or its error; a callable raises any but a `TaskError`."""
    try:
        return engine.render(member.row)
    except DeviceLost:
        raise
    except TaskError as error:
        return error
    except Exception as error:
        failure = error

    def fail() -> TaskResult:
        raise failure

    return fail


def result_now(engine: StepEngine, member: Member) -> TaskResult:
    """Make the result of the row. Raises what a task in its place would fail with."""
    result = render(engine, member)
    if isinstance(result, TaskError):
        raise result
    return result() if callable(result) else result


def save(engine: StepEngine, member: Member) -> Callable[[], Checkpoint | None] | None:
    """Return the engine's callable for a checkpoint, or None: the task resumes from an earlier one, or starts again.

    The callable returns None where it fails.
    """
    make = _saved(member, lambda: engine.save(member.row))
    return None if make is None else lambda: _saved(member, make)


def save_now(engine: StepEngine, member: Member) -> Checkpoint | None:
    """Return a checkpoint, or None as `save` does."""
    state = save(engine, member)
    return state() if state is not None else None


def _saved(member: Member, make: Callable[[], Saved]) -> Saved | None:
    """Return what `make` returns, or None where it fails. A task's first failure is logged with its traceback."""
    try:
        return make()
    except DeviceLost:
        raise
    except Exception as error:
        task, is_first = member.assignment, member.on_save_failure()
        level = logging.ERROR if is_first else logging.WARNING
        text = "task %s: its state could not be saved: %s"
        log.log(level, text, task.task, exception_line(error), exc_info=is_first, extra=task_fields(task))
        return None
