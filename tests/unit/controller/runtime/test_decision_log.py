"""The decision log: what a user's policy returns must not stop the controller."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from controller.autoscaler.autoscaler import DecisionEvent
from controller.runtime.decision_log import DecisionLog
from controller.runtime.report import MAX_TEXT
from controller.types import Decision, Observation
from wire.scaling import DecisionRecord


def test_any_text_of_a_policy_can_be_reported() -> None:
    log = DecisionLog()
    for reason in ("\ud800 half a character", "\x1b[31m red", "x" * 100_000):
        log.add(
            DecisionEvent("m", 0.0, "tick", Observation("m", None, []), Decision(1, reason, inputs={"\udc80": 1.0})),
            0.0,
        )
    sent = msgspec.json.decode(msgspec.json.encode(log.after(0)), type=tuple[DecisionRecord, ...])
    assert [record.reason for record in sent] == ["? half a character", "?[31m red", "x" * (MAX_TEXT - 3) + "..."]
    assert {name for record in sent for name in record.inputs} == {"?"}


def test_inputs_that_cannot_be_reported_are_left_out() -> None:
    log = DecisionLog()
    inputs: dict[Any, Any] = {"kept": 1.5, "text": "b", 3: 1.0, "huge": 10**400, "nan": math.nan, "inf": math.inf}
    log.add(DecisionEvent("m", 0.0, "tick", Observation("m", None, []), Decision(2, "why", inputs=inputs)), 0.0)
    assert log.latest["m"].inputs == {"kept": 1.5}
