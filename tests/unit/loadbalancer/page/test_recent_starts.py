"""The late tasks of the last ten minutes."""

from __future__ import annotations

from loadbalancer.page.recent_starts import RecentStarts, Starts


def test_only_the_last_ten_minutes_count() -> None:
    recent = RecentStarts()
    # A hundred tasks a minute, all late in the second minute.
    for second in range(1201):
        late = min(max(second - 60, 0), 60) * 100 // 60
        found = recent.update(float(second), Starts(second * 100 // 60, late))
        if second in (0, 90, 600, 700, 1200):
            expected = {0: (0, 0), 90: (150, 50), 600: (1000, 100), 700: (1000, 33), 1200: (1000, 0)}[second]
            assert abs(found.started - expected[0]) <= 17, second
            assert abs(found.late - expected[1]) <= 17, second


def test_earlier_tasks_than_the_first_look_do_not_count() -> None:
    recent = RecentStarts()
    assert recent.update(0.0, Starts(500, 400)) == (0, 0)
    assert recent.update(1.0, Starts(510, 403)) == (10, 3)
