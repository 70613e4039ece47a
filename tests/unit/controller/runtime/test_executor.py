"""How many processes start at once."""

from __future__ import annotations

import pytest

from controller.planning.plan import Plan
from controller.runtime.executor import bounded_starts, only_kills
from controller.types import Action, Activate, Drain, Kill, Start, StartSpare

A, B, C = (Start("m", f"cpu:{number}", "why") for number in range(3))
SPARE, DRAIN, ACTIVATE = StartSpare("m", "cpu", "why"), Drain("w", "why"), Activate("s", "m", "cpu:0", "why")


@pytest.mark.parametrize(
    ("actions", "room", "expected", "waiting"),
    [
        ([A, B, C], 2, [A, B], 1),
        ([A, B, C], 3, [A, B, C], 0),
        ([A, DRAIN, B, ACTIVATE, SPARE], 1, [A, DRAIN, ACTIVATE], 2),
        ([SPARE, A], 0, [], 2),
        ([A, DRAIN], -3, [DRAIN], 1),
        ([], 0, [], 0),
    ],
)
def test_starts_are_bounded_and_nothing_else(
    actions: list[Action], room: int, expected: list[Action], waiting: int
) -> None:
    assert bounded_starts(actions, room) == (expected, waiting)


def test_only_kills_are_left_of_a_plan() -> None:
    kill = Kill("w", "why")
    assert only_kills(Plan([A, DRAIN, kill, ACTIVATE, SPARE], {})).actions == [kill]
