"""Numbers of workers by the time of day: exactly these as a policy of its own, at least these under any other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
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


@lru_cache(maxsize=1024)
def _last_start(cron: str, timezone: str, minute: int) -> float | None:
    """When the entry last began, in seconds since 1970, as of that minute."""
    after = datetime.fromtimestamp(minute * 60, UTC).astimezone(ZoneInfo(timezone)) + timedelta(minutes=1)
    began = next(CronSim(cron, after, reverse=True), None)
    return began.timestamp() if began is not None else None
