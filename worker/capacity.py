"""Decides how many tasks the worker asks for and which waiting tasks join the batch. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import NamedTuple

from wire.messages import Assignment, ImageInputs
from worker.batch import Batch, R
from worker.batch_size import BatchSizer, Size, size_of
from worker.engine import EngineRequest


class WaitingTask(NamedTuple):
    """A task that has not joined the batch yet."""

    assignment: Assignment
    request: EngineRequest
    since: float


def full_batch(batch: Batch[R], sizer: BatchSizer, default_size: Size, now: float) -> int:
    """Return the limit of the running key that allows most, or that of the default size if nothing runs."""
    running = [sizer.limit(m.key, size_of(m.assignment.inputs), now) for m in batch.oldest_members()]
    return max(running, default=sizer.limit_any_key(default_size, now))


def offered_slots(running: int, waiting: int, full: int) -> int:
    """Return how many tasks the worker can hold: no more than it has while a task waits for a full batch."""
    return running + waiting if running and waiting else full


def select_joining(
    waiting: Collection[WaitingTask],
    batch: Batch[R],
    sizer: BatchSizer,
    key_of: Callable[[ImageInputs], Hashable],
    *,
    allowed: int,
    now: float,
) -> list[WaitingTask]:
    """Return up to `allowed` waiting tasks, in order of arrival, whose group has room; no key blocks another."""
    joining: list[WaitingTask] = []
    room: dict[Hashable, int] = {}
    for task in waiting:
        key = key_of(task.assignment.inputs)
        if key not in room:
            room[key] = sizer.limit(key, size_of(task.assignment.inputs), now) - len(batch.group(key))
        if room[key] > 0 and len(joining) < allowed:
            room[key] -= 1
            joining.append(task)
    return joining
