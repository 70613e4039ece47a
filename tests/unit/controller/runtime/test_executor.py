"""How many processes start at once."""

from __future__ import annotations

import pytest

from controller.runtime.executor import bounded_starts
from controller.types import Action, Activate, Drain, Start, StartSpare

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
