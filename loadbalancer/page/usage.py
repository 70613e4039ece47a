"""What each API key has used: since the start, in the last hour, and what waits and runs of it now. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from loadbalancer.scheduling.owner_usage import OwnerUsage
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.page import OwnerRow, UsagePage

#: Owners that the page lists, those with the most work first.
MAX_OWNERS = 200
_MINUTES = 60


class OwnerTotals(NamedTuple):
    """Ended tasks, generated tokens and seconds of work of one owner since the start."""

    done: int = 0
    failed: int = 0
    cancelled: int = 0
    tokens: int = 0
    work_s: float = 0.0


_NOTHING = OwnerTotals()


class UsageHistory:
    """The totals of an hour ago, from one set of totals per minute. Times are seconds on any monotonic clock."""

    def __init__(self) -> None:
        self._minutes: deque[tuple[int, Mapping[str, OwnerTotals]]] = deque(maxlen=_MINUTES + 1)

    def is_due(self, now: float) -> bool:
        return not self._minutes or self._minutes[-1][0] != now // 60

    def add(self, now: float, totals: Mapping[str, OwnerTotals]) -> None:
        """Add the totals of this minute."""
        self._minutes.append((int(now // 60), totals))

    def hour_before(self, now: float) -> Mapping[str, OwnerTotals]:
        """Return the newest totals that are an hour old; of a younger server, nothing was used."""
        old: Mapping[str, OwnerTotals] = {}
        for minute, totals in self._minutes:
            if minute > now // 60 - _MINUTES:
                break
            old = totals
        return old


def totals_by_owner(usage: Mapping[tuple[str, str], OwnerUsage]) -> dict[str, OwnerTotals]:
    """Return the use of all models by owner. A task that ran out of time counts as failed."""
    found: dict[str, OwnerTotals] = {}
    for (_, owner), one in usage.items():
        before, ended = found.get(owner, _NOTHING), one.ended
        found[owner] = OwnerTotals(
            before.done + ended[TaskState.DONE],
            before.failed + ended[TaskState.FAILED] + ended[TaskState.EXPIRED],
            before.cancelled + ended[TaskState.CANCELLED],
            before.tokens + one.tokens,
            before.work_s + one.work_s,
        )
    return found


def list_usage(
    totals: Mapping[str, OwnerTotals],
    hour_before: Mapping[str, OwnerTotals],
    tasks: Iterable[Task],
    owner: str | None,
) -> UsagePage:
    """Return the owners with the most work in the last hour, or one owner only."""
    queued: Counter[str] = Counter()
    running: Counter[str] = Counter()
    for task in tasks:
        (queued if task.state is TaskState.QUEUED else running)[task.owner] += 1
    names = totals.keys() | queued.keys() | running.keys() if owner is None else {owner}
    rows = [
        _row(name, totals.get(name, _NOTHING), hour_before.get(name, _NOTHING), queued[name], running[name])
        for name in names
    ]
    rows.sort(key=lambda row: (-row.hour_work_s, -row.work_s, row.owner))
    return UsagePage(rows[:MAX_OWNERS], len(rows), MAX_OWNERS)


def _row(name: str, now: OwnerTotals, before: OwnerTotals, queued: int, running: int) -> OwnerRow:
    return OwnerRow(
        owner=name,
        queued=queued,
        running=running,
        done=now.done,
        failed=now.failed,
        cancelled=now.cancelled,
        tokens=now.tokens,
        work_s=round(now.work_s, 3),
        hour_done=now.done - before.done,
        hour_tokens=now.tokens - before.tokens,
        hour_work_s=round(now.work_s - before.work_s, 3),
    )
