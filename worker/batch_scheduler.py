"""Schedules a worker's tasks: which of them wait, which join the batch, which share a step, and its time. Pure.

Tasks with equal keys form a group, which can share a step. The group that has used the least step time goes next, so
that a slow shape cannot hold up a fast one, nor a large group a small one.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from configs.model_sections import Batching
from wire.inputs import NO_SHAPE, Shape, TaskInputs
from wire.messages import Assignment
from worker.batch_size import BatchSizer
from worker.engine import EngineRequest, Row

#: Longer keys are cut.
_MAX_KEY_CHARS = 200
#: Weight of the newest step in the moving averages.
_NEWEST_WEIGHT = 0.1


class StepRecord(NamedTuple):
    """One step of a batch."""

    key: Hashable
    shape: Shape
    #: Tasks that have advanced.
    advanced: int
    #: All tasks of the batch have advanced, in one call: its time tells about batches of this size.
    is_whole: bool


class TimedStep(NamedTuple):
    """A step and its duration."""

    step: StepRecord
    seconds: float


class StepClock:
    """Measures the steps of a device that works behind the loop, such as a GPU.

    `step` queues work there, and returns when the step before it has finished. The time of that call belongs to the
    step before. Charged to the step that was queued, it would bill the time of a large image to a small one.
    """

    def __init__(self) -> None:
        #: The step that the device works on, and when it began.
        self._pending: tuple[StepRecord, float] | None = None

    def on_return(self, step: StepRecord, now: float) -> TimedStep | None:
        """Note that the call for `step` has returned; return the step that it has waited for."""
        finished, self._pending = self._pending, (step, now)  # the device begins it when the one before is done
        return None if finished is None else TimedStep(finished[0], now - finished[1])

    def on_idle(self) -> None:
        """Note that no step follows: nothing waits for the last one, and its duration stays unknown."""
        self._pending = None


class WaitingTask(NamedTuple):
    """A task that has not joined the batch yet."""

    assignment: Assignment
    request: EngineRequest
    key: Hashable
    shape: Shape
    since: float


@dataclass(slots=True)
class Member:
    """A task in the batch, with its row in the engine."""

    assignment: Assignment
    key: Hashable
    shape: Shape
    row: Row
    #: Time and step of its last checkpoint.
    saved_at: float = 0.0
    saved_step: int = 0
    _has_save_failed: bool = False

    def on_save_failure(self) -> bool:
        """Note that its state could not be saved. Return whether that is the first time."""
        is_first, self._has_save_failed = not self._has_save_failed, True
        return is_first

    def on_checkpoint(self, now: float) -> None:
        self.saved_at, self.saved_step = now, self.row.step


@dataclass(slots=True)
class _Group:
    """Tasks that can share a forward pass, oldest first, and the step time that they have used."""

    used_s: float
    members: dict[str, Member] = field(default_factory=dict)
    #: Members that no other task may join in a step.
    isolated: int = 0


@dataclass(slots=True)
class BatchStats:
    """Sums since the start and moving averages. Written by `BatchScheduler`, read by the client's thread."""

    steps: int = 0
    #: Tasks, summed over steps.
    rows: int = 0
    max_batch: int = 0
    joined_midway: int = 0
    step_s: float = 0.0
    #: Times that a batch did not fit into memory.
    out_of_memory: int = 0
    mean_step_s: float = 0.0
    mean_batch: float = 0.0


class BatchScheduler:
    """The waiting and running tasks. Other classes read `waiting`, `running` and `stats`, and change none of them."""

    def __init__(self, sizer: BatchSizer, batching: Batching, default_shape: Shape) -> None:
        self._sizer = sizer
        self._batching = batching
        self._default_shape = default_shape
        #: No task joins a batch that runs.
        self.is_grouped = batching.mode == "grouped"
        self._batch_wait_s = (batching.batch_wait_ms or 0.0) / 1000
        self._groups: dict[Hashable, _Group] = {}
        #: A task did not fit into memory beside those that run: none joins until one of them leaves.
        self._memory_full = False
        #: That task, while it waits. No other joins before it, or it might never find room.
        self._deferred = ""
        self._draining = False
        self.waiting: dict[str, WaitingTask] = {}
        self._waiting_by_key: dict[Hashable, int] = {}
        self.running: dict[str, Member] = {}
        self.stats = BatchStats()

    def __repr__(self) -> str:
        groups = ", ".join(f"{key}: {len(group.members)}" for key, group in self._groups.items())
        return f"<BatchScheduler {len(self.waiting)} waiting, {len(self.running)} running {{{groups}}}>"

    def drain(self) -> None:
        """Offer no more slots."""
        self._draining = True

    def slots(self, now: float) -> int:
        """Return how many tasks the worker can run: no more than it does while a task waits for a full batch."""
        if self._draining:
            return 0
        if self.waiting and self.running:
            return len(self.running)
        if not self._groups:
            return self._sizer.limit(self._default_shape, now)
        oldest = [next(iter(group.members.values())) for group in self._groups.values()]
        return max([self._sizer.limit(member.shape, now, key=member.key) for member in oldest])

    def add(self, task: WaitingTask) -> None:
        self.remove(task.assignment.task)
        self.waiting[task.assignment.task] = task
        self._waiting_by_key[task.key] = self._waiting_by_key.get(task.key, 0) + 1

    def remove(self, task: str) -> WaitingTask | None:
        waiting = self.waiting.pop(task, None)
        if waiting is not None:
            self._waiting_by_key[waiting.key] -= 1
            if not self._waiting_by_key[waiting.key]:
                del self._waiting_by_key[waiting.key]
        return waiting

    def take_joining(self, now: float, unready: Collection[str] = ()) -> list[WaitingTask]:
        """Remove and return the waiting tasks whose group has room, in order of arrival; no key blocks another.

        Those in `unready` go on waiting, and so do all behind one that waits for memory.

        In `grouped` mode a batch starts when it is full or its oldest task has waited `window_s`, and no task joins
        until all have left. It is the baseline of servers without step batching. `batch_wait_ms` delays a batch while
        nothing runs.
        """
        if self._memory_full:
            return []
        allowed = len(self.waiting)
        if self.is_grouped:
            full, oldest = self._sizer.limit(self._default_shape, now), next(iter(self.waiting.values()))
            if self.running or (allowed < full and now - oldest.since < self._batching.window_s):
                return []
            allowed = min(allowed, full)
        elif self._batch_wait_s and self.wait_s(now):
            return []
        joining: list[WaitingTask] = []
        room: dict[Hashable, int] = {}
        with_room = len(self._waiting_by_key)
        for task in self._in_order():
            key = task.key
            places = room.get(key)
            if places is None:
                group = self._groups.get(key)
                limit = self._sizer.limit(task.shape, now, key=key)
                places = limit - (len(group.members) if group is not None else 0)
                with_room -= places <= 0
            if places > 0 and len(joining) < allowed and task.assignment.task not in unready:
                places -= 1
                with_room -= places == 0
                joining.append(task)
            room[key] = places
            if not with_room:  # no key of those that wait: many may wait ahead of short steps
                break
        for task in joining:
            self.remove(task.assignment.task)
        return joining

    def _in_order(self) -> Iterable[WaitingTask]:
        """Return the waiting tasks that may join. One that waits for memory goes first, and alone while others run."""
        if not self.has_deferred:
            return self.waiting.values()
        first = self.waiting[self._deferred]
        return [first] if self.running else [first, *(task for task in self.waiting.values() if task is not first)]

    def wait_s(self, now: float) -> float:
        """Return how long an incomplete batch still waits for more tasks by `batch_wait_ms`, while nothing runs."""
        wait_s = self._batch_wait_s
        if not wait_s or self.running or not self.waiting:
            return 0.0
        oldest = next(iter(self.waiting.values()))
        full = self._sizer.limit(oldest.shape, now, key=oldest.key)
        return max(oldest.since + wait_s - now, 0.0) if len(self.waiting) < full else 0.0

    @property
    def has_deferred(self) -> bool:
        """Whether a task waits for memory, before all others."""
        return self._deferred in self.waiting

    def defer(self, task: WaitingTask) -> None:
        """Take back a task that did not fit into memory beside those that run."""
        self._memory_full = True
        self.add(task)
        if not self.has_deferred:
            self._deferred = task.assignment.task

    def join(self, task: WaitingTask, row: Row, now: float) -> None:
        """Add a task. A new group starts with the least used time of the others, so that it cannot dominate."""
        group = self._groups.get(task.key)
        if group is None:
            used_s = min((other.used_s for other in self._groups.values()), default=0.0)
            group = self._groups[task.key] = _Group(used_s)
        elif next(iter(group.members.values())).row.step > 0:  # the oldest takes part in every step
            self.stats.joined_midway += 1
        assignment = task.assignment
        group.isolated += assignment.isolated
        member = Member(assignment, task.key, task.shape, row, now, row.step)
        self.running[assignment.task] = group.members[assignment.task] = member

    def next_group(self, now: float) -> list[Member]:
        """Return the members of the next step, oldest first; only the oldest if one of them is isolated."""
        if not self._groups:
            return []
        group = min(self._groups.values(), key=attrgetter("used_s"))
        members = list(group.members.values())
        if group.isolated:
            return members[:1]
        return members[: self._sizer.limit(members[0].shape, now, key=members[0].key)]

    def on_step(
        self, advanced: int, seconds: float, timed: TimedStep | None, now: float, *, extra_s: float = 0.0
    ) -> None:
        """Count a step in which so many tasks have advanced, and the time that the loop has spent in it.

        `timed` is the step whose duration is known now. It is charged to its group, if that still has tasks, and
        batches of its size are known to take so long. `extra_s` of it do not come again with each step, such as those
        of computing prompts.
        """
        if advanced:
            stats = self.stats
            weight = _NEWEST_WEIGHT if stats.steps else 1.0
            stats.mean_step_s += weight * (seconds - stats.mean_step_s)
            stats.mean_batch += weight * (advanced - stats.mean_batch)
            stats.steps += 1
            stats.rows += advanced
            stats.max_batch = max(stats.max_batch, advanced)
            stats.step_s += seconds

        if timed is None:
            return
        step, charged_s = timed
        group = self._groups.get(step.key)
        if group is not None:
            group.used_s += charged_s
        if step.is_whole and step.advanced:
            self._sizer.observe(step.shape, step.advanced, max(charged_s - extra_s, 0.0), now)

    def on_out_of_memory(self, key: Hashable, fits: int, now: float) -> None:
        """Limit the group to `fits` tasks for a while."""
        self.stats.out_of_memory += 1
        self._sizer.on_out_of_memory(key, fits, now)

    def leave(self, task: str) -> Member | None:
        """Remove and return a running task; None if it does not run."""
        member = self.running.pop(task, None)
        if member is not None:
            self._memory_full = False
            group = self._groups[member.key]
            del group.members[task]
            group.isolated -= member.assignment.isolated
            if not group.members:
                del self._groups[member.key]
        return member


def shape_of(inputs: TaskInputs, key: Hashable) -> Shape:
    """Return the shape of a task: that of its inputs, or else its batch key, if the engine made a text of it."""
    shape = inputs.shape
    return Shape(key[:_MAX_KEY_CHARS]) if shape == NO_SHAPE and isinstance(key, str) else shape


def preview_steps(steps: int, previews: int) -> frozenset[int]:
    """Return the steps after which a preview is due: evenly spread, never after the last step."""
    if steps < 2:
        return frozenset()
    return frozenset(max(1, round(steps * (i + 1) / (previews + 1))) for i in range(previews)) - {steps}
