"""Numbers of workers by cron schedule: the exact number under policy `schedule`, a minimum under any other policy."""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim

from configs.scaling import Scaling, Scheduled
from controller.types import Decision, Observation, WorkerLimits


def decide(
    observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: None, now: float
) -> tuple[Decision, None]:
    """Return the scheduled number of workers. If the time of day is unknown, the decision is not valid."""
    del memory, now
    entry = active_entry(scaling.schedule, observation.unix_s)
    if entry is None:
        return Decision(observation.provisioned, "the time of day is not known", valid=False), None
    number = min(max(entry.workers, limits.min_workers), limits.max_workers)
    return Decision(number, f"schedule {entry.cron!r} requires {entry.workers}"), None


def active_entry(schedule: tuple[Scheduled, ...], unix_s: float | None) -> Scheduled | None:
    """Return the entry that started last; None if none has started.

    If two entries start at the same time, the later one in the list wins.
    """
    if unix_s is None:
        return None
    minute = int(unix_s // 60)
    started = [
        (start, number)
        for number, entry in enumerate(schedule)
        if (start := _last_start(entry.cron, entry.timezone, minute))
    ]
    return schedule[max(started)[1]] if started else None


class _EntryStart(NamedTuple):
    """The start time of an entry, in Unix seconds. `offset_s` keeps the order of starts in one skipped hour."""

    unix_s: float
    #: Seconds from the local time at the start to the local time in the entry; 0 unless that time was skipped.
    offset_s: float


@lru_cache(maxsize=1024)
def _last_start(cron: str, timezone: str, minute: int) -> _EntryStart | None:
    """Return the last start of the entry up to this minute; None without one.

    Every local time counts once. A repeated time counts at its first occurrence, a skipped time at the clock change.
    """
    zone = ZoneInfo(timezone)
    now = datetime.fromtimestamp(minute * 60, zone)
    # In the second pass of a repeated hour, all of its local times have already occurred.
    repeated = _utcoffset(now.replace(fold=0)) - _utcoffset(now) if now.fold else timedelta()
    # The search uses local time without clock changes, because cronsim would skip or repeat some starts.
    latest = now.replace(tzinfo=UTC, fold=0) + repeated + timedelta(minutes=1)
    for named in CronSim(cron, latest, reverse=True):
        start = _start_at(named.replace(tzinfo=zone))
        if start.unix_s <= minute * 60:
            return start
    return None


def _start_at(named: datetime) -> _EntryStart:
    """Return the first instant with this local time, or the clock change that skips it."""
    after = int(named.timestamp())
    shown = datetime.fromtimestamp(after, named.tzinfo)
    if shown.replace(tzinfo=None) == named.replace(tzinfo=None):
        return _EntryStart(after, 0.0)
    before = int(named.replace(fold=1).timestamp())
    instants = range(before, after + 1)
    changed = _utcoffset(shown)
    index = bisect_left(
        instants, 1, key=lambda at: int(_utcoffset(datetime.fromtimestamp(at, named.tzinfo)) == changed)
    )
    jump = datetime.fromtimestamp(instants[index], named.tzinfo)
    return _EntryStart(instants[index], (named.replace(tzinfo=None) - jump.replace(tzinfo=None)).total_seconds())


def _utcoffset(at: datetime) -> timedelta:
    return at.utcoffset() or timedelta()
