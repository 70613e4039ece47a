"""Schedules on the days of clock changes: every local time counts once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from configs.scaling import Scaling
from controller.policies.schedule import active_entry


def changes(zone: str, entries: list[tuple[str, int]], first: str, hours: int = 24) -> list[tuple[str, int]]:
    """Return the UTC times at which the number changes, minute by minute from the first."""
    schedule = [{"cron": cron, "workers": workers, "timezone": zone} for cron, workers in entries]
    scaling = Scaling.model_validate({"policy": "schedule", "schedule": schedule})
    start = datetime.fromisoformat(first).replace(tzinfo=UTC)
    found: list[tuple[str, int]] = []
    for minute in range(hours * 60):
        at = start + timedelta(minutes=minute)
        entry = active_entry(scaling.schedule, at.timestamp())
        assert entry is not None
        if not found or found[-1][1] != entry.workers:
            found.append((f"{at:%d %H:%M}", entry.workers))
    return found[1:]


NIGHT = [("30 2 * * *", 5), ("0 4 * * *", 1)]


@pytest.mark.parametrize(
    ("zone", "entries", "first", "expected"),
    [
        # Back: 02:00 to 03:00 occurs twice in Berlin. The first 02:30 counts.
        ("Europe/Berlin", NIGHT, "2026-10-24T12:00", [("25 00:30", 5), ("25 03:00", 1)]),
        ("Europe/Berlin", [("0 2 * * *", 5), ("0 3 * * *", 1)], "2026-10-24T12:00", [("25 00:00", 5), ("25 02:00", 1)]),
        (
            "Europe/Berlin",
            [("0 2 * * *", 2), ("20 2 * * *", 3), ("40 2 * * *", 4), ("0 3 * * *", 1)],
            "2026-10-24T12:00",
            [("25 00:00", 2), ("25 00:20", 3), ("25 00:40", 4), ("25 02:00", 1)],
        ),
        (
            "America/New_York",
            [("30 1 * * *", 5), ("0 3 * * *", 1)],
            "2026-10-31T12:00",
            [("01 05:30", 5), ("01 08:00", 1)],
        ),
        # Half an hour back, at 02:00 on Lord Howe Island.
        (
            "Australia/Lord_Howe",
            [("45 1 * * *", 5), ("0 4 * * *", 1)],
            "2026-04-04T06:00",
            [("04 14:45", 5), ("04 17:30", 1)],
        ),
        # Forward: 02:00 to 03:00 is skipped in Berlin, at 01:00 UTC.
        ("Europe/Berlin", NIGHT, "2026-03-28T12:00", [("29 01:00", 5), ("29 02:00", 1)]),
        (
            "Europe/Berlin",
            [("40 2 * * *", 4), ("20 2 * * *", 3), ("0 4 * * *", 1)],
            "2026-03-28T12:00",
            [("29 01:00", 4), ("29 02:00", 1)],
        ),
        ("Europe/Berlin", [("30 2 * * *", 5), ("0 3 * * *", 1)], "2026-03-28T12:00", []),
        ("America/New_York", NIGHT, "2026-03-07T12:00", [("08 07:00", 5), ("08 08:00", 1)]),
        (
            "Australia/Lord_Howe",
            [("15 2 * * *", 5), ("0 4 * * *", 1)],
            "2026-10-03T06:00",
            [("03 15:30", 5), ("03 17:00", 1)],
        ),
        # A day without a change, and a zone without any.
        ("Europe/Berlin", NIGHT, "2026-07-01T12:00", [("02 00:30", 5), ("02 02:00", 1)]),
        ("Asia/Tokyo", NIGHT, "2026-10-24T12:00", [("24 17:30", 5), ("24 19:00", 1)]),
        # Samoa skipped a whole day, 30 December 2011, at 10:00 UTC.
        (
            "Pacific/Apia",
            [("0 12 30 12 *", 5), ("0 12 31 12 *", 1)],
            "2011-12-30T00:00",
            [("30 10:00", 5), ("30 22:00", 1)],
        ),
    ],
)
def test_each_local_time_counts_once(
    zone: str, entries: list[tuple[str, int]], first: str, expected: list[tuple[str, int]]
) -> None:
    assert changes(zone, entries, first) == expected


def test_minutely_entry_is_active_in_a_repeated_hour() -> None:
    assert changes("Europe/Berlin", [("* * * * *", 2)], "2026-10-24T23:00", hours=5) == []
