"""Which tasks share the next step: who joins, whose turn it is, who leaves. Pure: no clock, no engine, no socket.

Tasks whose keys are equal form a group. Each group is owed steps in proportion to nothing but its turn: the group
that has used the least time goes next, so that a slow shape cannot hold up a fast one, nor a big group a small one.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from wire.messages import Assignment

R = TypeVar("R")

#: Work that a lost worker may cost a task, where the configuration names no number of steps.
CHECKPOINT_EVERY_S = 2.0


@dataclass(slots=True)
class Member(Generic[R]):
    """A task in the batch, with its row in the engine."""

    assignment: Assignment
    key: Hashable
    row: R
    #: When its state was last sent away, and at which step.
    saved_at: float = 0.0
    saved_step: int = 0


@dataclass(slots=True)
class Group(Generic[R]):
    """Tasks that can share a forward pass."""

    #: Seconds of steps that this group has had.
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

    def leaders(self) -> list[Member[R]]:
        """The oldest member of each group."""
        return [next(iter(group.members.values())) for group in self._groups.values()]

    def group(self, key: Hashable) -> list[Member[R]]:
        """The members that a newcomer with this key would join."""
        group = self._groups.get(key)
        return list(group.members.values()) if group else []

    def join(self, member: Member[R]) -> None:
        """Add a task. Its group's turn starts level with the others', so that a new shape neither waits nor pushes."""
        group = self._groups.get(member.key)
        if group is None:
            level = min((other.used_s for other in self._groups.values()), default=0.0)
            group = self._groups[member.key] = Group(used_s=level)
        group.members[member.assignment.task] = member

    def choose(self) -> list[Member[R]]:
        """Whose turn it is: the group that has used the least time, its oldest members first.

        A task that must be alone gets a step of its own.
        """
        if not self._groups:
            return []
        group = min(self._groups.values(), key=lambda group: group.used_s)
        members = list(group.members.values())
        return members[:1] if any(member.assignment.isolated for member in members) else members

    def charge(self, key: Hashable, seconds: float) -> None:
        """The group has had a step."""
        group = self._groups.get(key)
        if group is not None:
            group.used_s += seconds

    def leave(self, task: str) -> Member[R] | None:
        """Take a task out; None if it is not here."""
        for key, group in self._groups.items():
            member = group.members.pop(task, None)
            if member is not None:
                if not group.members:
                    del self._groups[key]
                return member
        return None

    def members(self) -> list[Member[R]]:
        """Every task."""
        return [member for group in self._groups.values() for member in group.members.values()]


class Gate:
    """Who may join when. In `step` mode whoever waits; in `grouped` mode a whole batch at a time.

    Grouped is the way of servers without step batching, kept to be compared with: the batch starts when it is full
    or its oldest request has waited `window_s`, and nobody joins until all have left.
    """

    def __init__(self, grouped: bool, window_s: float) -> None:
        self._grouped = grouped
        self._window_s = window_s

    def admit(self, waiting: int, oldest_wait_s: float, running: int, full: int) -> int:
        """How many of those that wait may join now; `full` tasks are a whole batch."""
        if not self._grouped:
            return waiting
        if running or (waiting < full and oldest_wait_s < self._window_s):
            return 0
        return min(waiting, full)


def preview_steps(steps: int, previews: int) -> frozenset[int]:
    """The step counts after which a preview is due: evenly spread, never after the last step."""
    if steps < 2:
        return frozenset()
    return frozenset(max(1, round(steps * (i + 1) / (previews + 1))) for i in range(previews)) - {steps}


def checkpoint_due(member: Member[R], step: int, now: float, every: int | Literal["auto", "never"]) -> bool:
    """Whether the member's state is to be sent away after this step."""
    if every == "auto":
        return now - member.saved_at >= CHECKPOINT_EVERY_S
    return every != "never" and step - member.saved_step >= every
