"""What becomes of tasks when the engine breaks on them together: halving finds the guilty one, the others go on.

Both functions rest on the engine's promise that a call which raises has changed nothing. `DeviceLost` passes through:
nothing can be saved by trying again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from worker.batch import Member
from worker.engine import DeviceLost, OutOfMemory, Row, StepEngine, TaskError, Wanted

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What a step did to each of its members."""

    moved: list[Member[Row]] = field(default_factory=list)
    failed: list[tuple[Member[Row], TaskError]] = field(default_factory=list)
    #: Did not fit into memory beside the others.
    squeezed_out: list[Member[Row]] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.moved + other.moved, self.failed + other.failed, self.squeezed_out + other.squeezed_out)


def step(engine: StepEngine, members: Sequence[Member[Row]]) -> Outcome:
    """Advance these by one step, oldest first. Out of memory, the newest give way."""
    half = len(members) // 2
    try:
        engine.step([member.row for member in members])
    except DeviceLost:
        raise
    except OutOfMemory as error:
        if half:
            log.warning("a step of %d tasks is out of memory: %s", len(members), error)
            fewer = max(len(members) * 3 // 4, 1)  # less than half would leave memory unused for long
            return step(engine, members[:fewer]) + Outcome(squeezed_out=list(members[fewer:]))
        return Outcome(failed=[(members[0], TaskError("out_of_memory", str(error)))])
    except Exception as error:
        if half:
            return step(engine, members[:half]) + step(engine, members[half:])
        log.exception("task %s cannot be stepped", members[0].assignment.task)
        known = error if isinstance(error, TaskError) else TaskError("error", f"step failed: {error}")
        return Outcome(failed=[(members[0], known)])
    return Outcome(moved=list(members))


def admit(engine: StepEngine, tasks: Sequence[Wanted]) -> list[Row | TaskError | OutOfMemory]:
    """A row for each, or why there is none. `OutOfMemory` says that it may fit when others have left."""
    try:
        rows: list[Row | TaskError | OutOfMemory] = [*engine.admit(tasks)]
    except DeviceLost:
        raise
    except Exception as error:
        if len(tasks) > 1:
            return [row for task in tasks for row in admit(engine, [task])]
        if isinstance(error, OutOfMemory):
            return [error]
        log.exception("a task cannot be admitted")
        return [TaskError("error", f"the request could not be prepared: {error}")]
    return [_from_the_start(engine, task, row) for task, row in zip(tasks, rows, strict=True)]


def _from_the_start(
    engine: StepEngine, task: Wanted, row: Row | TaskError | OutOfMemory
) -> Row | TaskError | OutOfMemory:
    """A task whose checkpoint is of no use here, such as one of another version, begins again."""
    if task.checkpoint is None or not isinstance(row, TaskError):
        return row
    log.warning("the checkpoint at step %d cannot be used, starting again: %s", task.checkpoint.step, row)
    return admit(engine, [replace(task, checkpoint=None)])[0]
