"""The silence of a peer counts while the loop listens, and not while the process was suspended."""

from __future__ import annotations

import pytest

from worker.silence_clock import SilenceClock


def test_silence_counts_from_the_last_message() -> None:
    clock = SilenceClock(100.0, 1.0)
    for now in (101.0, 102.0, 104.0, 107.0):
        assert clock.turn(now) == 0.0, "a busy machine is late"
    assert clock.silent_s(107.0) == 7.0
    clock.on_message(107.5)
    assert clock.turn(108.0) == 0.0
    assert clock.silent_s(108.0) == 0.5


def test_suspension_is_no_silence() -> None:
    clock = SilenceClock(100.0, 1.0)
    clock.turn(101.0)
    assert clock.turn(161.0) == 60.0
    assert clock.silent_s(161.0) == 1.0
    assert clock.turn(162.0) == 0.0
    assert clock.silent_s(162.0) == 2.0, "and what follows counts"
    clock.turn(262.0)
    assert clock.silent_s(262.0) == 2.0


@pytest.mark.parametrize("received_at", [100.5, 159.0])
def test_message_that_came_in_the_same_turn_is_never_in_the_future(received_at: float) -> None:
    clock = SilenceClock(100.0, 1.0)
    clock.on_message(received_at)
    clock.turn(160.0)
    assert clock.silent_s(160.0) >= 0.0
