"""How many processes start at once."""

from __future__ import annotations

import pytest

from controller.planning.plan import Plan
from controller.runtime.executor import bounded_starts, only_kills
from controller.types import Action, Activate, Drain, Kill, Start

A, B, C = (Start("m", f"cpu:{number}", "why") for number in range(3))
FAR, FAR_SPARE = Start("m", "box/cuda:0", "why"), Start("m", "box/cuda", "why", standby=True)
SPARE, DRAIN = Start("m", "cpu", "why", standby=True), Drain("w", "why")
ACTIVATE = Activate("s", "m", "cpu:0", "why")


@pytest.mark.parametrize(
    ("actions", "starting", "expected", "waiting"),
    [
        ([A, B, C], {"": 1}, [A, B], 1),
        ([A, B, C], {}, [A, B, C], 0),
        ([A, DRAIN, B, ACTIVATE, SPARE], {"": 2}, [A, DRAIN, ACTIVATE], 2),
        ([SPARE, A], {"": 3}, [], 2),
        ([A, DRAIN], {"": 6}, [DRAIN], 1),
        ([], {"": 3}, [], 0),
        # Each machine has its own limit.
        ([A, FAR, FAR_SPARE, B], {"": 2, "box": 1}, [A, FAR, FAR_SPARE], 1),
        ([A, FAR, FAR_SPARE, B], {"box": 3}, [A, B], 2),
    ],
)
def test_starts_of_a_machine_are_bounded(
    actions: list[Action], starting: dict[str, int], expected: list[Action], waiting: int
) -> None:
    assert bounded_starts(actions, 3, starting) == (expected, waiting)


def test_only_kills_are_left_of_a_plan() -> None:
    kill = Kill("w", "why")
    assert only_kills(Plan([A, DRAIN, kill, ACTIVATE, SPARE], {})).actions == [kill]
