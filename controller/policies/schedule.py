"""Numbers of workers by the time of day: exactly these as a policy of its own, at least these under any other."""

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
    """The number that the schedule gives for now. Where the time of day is not known there is no decision."""
    del memory, now
    entry = active_entry(scaling.schedule, observation.unix_s)
    if entry is None:
        return Decision(observation.provisioned, "the time of day is not known", valid=False), None
    number = min(max(entry.workers, limits.min_workers), limits.max_workers)
    return Decision(number, f"schedule {entry.cron!r} says {entry.workers}"), None


def active_entry(schedule: tuple[Scheduled, ...], unix_s: float | None) -> Scheduled | None:
    """The entry that began last; of two that begin together the later one in the list. None where none ever began."""
    if unix_s is None:
        return None
    minute = int(unix_s // 60)
    started = [
        (began, number) for number, one in enumerate(schedule) if (began := _last_start(one.cron, one.timezone, minute))
    ]
    return schedule[max(started)[1]] if started else None


class _EntryStart(NamedTuple):
    """When an entry began, in seconds since 1970. Starts in one skipped hour are in the order of the clock."""

    unix_s: float
    #: Seconds from the time that the clock showed then to the time that the entry names; 0 unless that was skipped.
    offset_s: float


@lru_cache(maxsize=1024)
def _last_start(cron: str, timezone: str, minute: int) -> _EntryStart | None:
    """When the entry last began, as of that minute.

    Every local time counts once: a repeated one when it comes first, a skipped one when the clock jumps over it.
    """
    zone = ZoneInfo(timezone)
    now = datetime.fromtimestamp(minute * 60, zone)
    # In the second pass of a repeated hour, all times of its first pass have been.
    repeated = _utcoffset(now.replace(fold=0)) - _utcoffset(now) if now.fold else timedelta()
    # The search is in local time without its changes, of which cronsim would skip or repeat some.
    latest = now.replace(tzinfo=UTC, fold=0) + repeated + timedelta(minutes=1)
    for named in CronSim(cron, latest, reverse=True):
        start = _start_at(named.replace(tzinfo=zone))
        if start.unix_s <= minute * 60:
            return start
    return None


def _start_at(named: datetime) -> _EntryStart:
    """When the clock shows this local time first, or jumps over it."""
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
