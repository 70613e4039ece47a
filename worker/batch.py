"""The running batch: tasks in groups that can share a step. Pure: no clock, no engine, no socket.

Tasks with equal keys form a group. The group that has used the least step time goes next, so that a slow shape cannot
hold up a fast one, nor a large group a small one.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from wire.messages import Assignment

R = TypeVar("R")

#: Interval of checkpoints in `auto` mode: the work that a lost worker may cost a task.
CHECKPOINT_EVERY_S = 2.0


@dataclass(slots=True)
class Member(Generic[R]):
    """A task in the batch, with its row in the engine."""

    assignment: Assignment
    key: Hashable
    row: R
    #: Time and step of its last checkpoint.
    saved_at: float = 0.0
    saved_step: int = 0


@dataclass(slots=True)
class Group(Generic[R]):
    """Tasks that can share a forward pass."""

    #: Step time that this group has used.
    used_s: float = 0.0
    members: dict[str, Member[R]] = field(default_factory=dict)


class Batch(Generic[R]):
    """The running tasks of a worker."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, Group[R]] = {}

    def __len__(self) -> int:
        return sum(len(group.members) for group in self._groups.values())

    def __repr__(self) -> str:
        groups = ", ".join(f"{key}: {len(group.members)}" for key, group in self._groups.items())
        return f"<Batch {len(self)} tasks {{{groups}}}>"

    def __contains__(self, task: str) -> bool:
        return any(task in group.members for group in self._groups.values())

    def oldest_members(self) -> list[Member[R]]:
        return [next(iter(group.members.values())) for group in self._groups.values()]

    def group(self, key: Hashable) -> list[Member[R]]:
        group = self._groups.get(key)
        return list(group.members.values()) if group else []

    def join(self, member: Member[R]) -> None:
        """Add a task. A new group starts with the least used time of the others, so that it cannot dominate."""
        group = self._groups.get(member.key)
        if group is None:
            level = min((other.used_s for other in self._groups.values()), default=0.0)
            group = self._groups[member.key] = Group(used_s=level)
        group.members[member.assignment.task] = member

    def next_group(self) -> list[Member[R]]:
        """Return the group that has used the least time, oldest members first.

        If a member is isolated, only the oldest is returned.
        """
        if not self._groups:
            return []
        group = min(self._groups.values(), key=lambda group: group.used_s)
        members = list(group.members.values())
        return members[:1] if any(member.assignment.isolated for member in members) else members

    def charge(self, key: Hashable, seconds: float) -> None:
        group = self._groups.get(key)
        if group is not None:
            group.used_s += seconds

    def leave(self, task: str) -> Member[R] | None:
        """Remove and return a task; None if it is not in the batch."""
        for key, group in self._groups.items():
            member = group.members.pop(task, None)
            if member is not None:
                if not group.members:
                    del self._groups[key]
                return member
        return None

    def members(self) -> list[Member[R]]:
        return [member for group in self._groups.values() for member in group.members.values()]


class JoinPolicy:
    """Limits how many waiting tasks may join. `step` mode sets no limit; `grouped` mode forms one full batch at a time.

    Grouped mode is the baseline of servers without step batching: a batch starts when it is full or its oldest request
    has waited `window_s`, and no task joins until all have left.
    """

    def __init__(self, grouped: bool, window_s: float) -> None:
        self._grouped = grouped
        self._window_s = window_s

    def admit(self, waiting: int, oldest_wait_s: float, running: int, full: int) -> int:
        """Return how many of the `waiting` tasks may join now; `full` is the size of a full batch."""
        if not self._grouped:
            return waiting
        if running or (waiting < full and oldest_wait_s < self._window_s):
            return 0
        return min(waiting, full)


def preview_steps(steps: int, previews: int) -> frozenset[int]:
    """Return the steps after which a preview is due: evenly spread, never after the last step."""
    if steps < 2:
        return frozenset()
    return frozenset(max(1, round(steps * (i + 1) / (previews + 1))) for i in range(previews)) - {steps}


def is_checkpoint_due(member: Member[R], step: int, now: float, every: int | Literal["auto", "never"]) -> bool:
    if every == "auto":
        return now - member.saved_at >= CHECKPOINT_EVERY_S
    return every != "never" and step - member.saved_step >= every
