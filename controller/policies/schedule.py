"""Numbers of workers by the time of day: exactly these as a policy of its own, at least these under any other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim

from configs.scaling import Scaling, Scheduled
from controller.types import Decision, Limits, Observation


def decide(seen: Observation, scaling: Scaling, limits: Limits, memory: None, now: float) -> tuple[Decision, None]:
    """The number that the schedule gives for now. Where the time of day is not known there is no decision."""
    del memory, now
    entry = in_force(scaling.schedule, seen.unix_s)
    if entry is None:
        return Decision(seen.provisioned, "the time of day is not known", valid=False), None
    number = min(max(entry.workers, limits.min_workers), limits.max_workers)
    return Decision(number, f"schedule {entry.cron!r} says {entry.workers}"), None


def in_force(schedule: tuple[Scheduled, ...], unix_s: float | None) -> Scheduled | None:
    """The entry that began last; of two that begin together the later one in the list. None where none ever began."""
    if unix_s is None:
        return None
    minute = int(unix_s // 60)
    begun = [
        (began, number) for number, one in enumerate(schedule) if (began := _began(one.cron, one.timezone, minute))
    ]
    return schedule[max(begun)[1]] if begun else None


@lru_cache(maxsize=1024)
def _began(cron: str, timezone: str, minute: int) -> float | None:
    """When the entry last began, in seconds since 1970, as of that minute."""
    after = datetime.fromtimestamp(minute * 60, UTC).astimezone(ZoneInfo(timezone)) + timedelta(minutes=1)
    began = next(CronSim(cron, after, reverse=True), None)
    return began.timestamp() if began is not None else None
