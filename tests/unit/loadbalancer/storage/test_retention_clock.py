"""Deletion by age while the system clock jumps."""

from __future__ import annotations

from loadbalancer.storage.retention_clock import RetentionClock

DAY_S = 86_400.0


def test_clock_is_that_of_the_system() -> None:
    clock = RetentionClock(1000.0, 5.0)
    assert [clock.now(1000.0 + n, 5.0 + n) for n in (0, 10, 10, 3600)] == [1000.0, 1010.0, 1010.0, 4600.0]


def test_jump_ahead_is_caught_up_in_time_as_long_as_itself() -> None:
    clock = RetentionClock(0.0, 0.0)
    assert clock.now(DAY_S + 10.0, 10.0) == 20.0, "nothing of yesterday is old at once"
    assert clock.now(DAY_S + 20.0, 20.0) == 40.0
    assert clock.now(2 * DAY_S, DAY_S) == 2 * DAY_S


def test_jump_back_is_followed_at_once() -> None:
    clock = RetentionClock(DAY_S, 0.0)
    assert clock.now(10.0, 10.0) == 10.0
    assert clock.now(DAY_S + 20.0, 20.0) == 30.0, "and the way back is a jump ahead"
