"""The controller's report: the reason for a model's number of workers."""

from __future__ import annotations

import pytest

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler, DecisionEvent
from controller.autoscaler.model_state import ModelState
from controller.autoscaler.overrides import Override, Overrides, override_decision
from controller.policies import static
from controller.runtime.decision_log import DecisionLog
from controller.runtime.report import ReportInput, build_report
from controller.types import Decision, Observation, Queue, WorkerLimits

LIMITS = WorkerLimits(min_workers=0, max_workers=4, start_timeout_s=60, drain_timeout_s=60, lost_after_s=10)
HOLD = Override(2, 1e9)


@pytest.mark.parametrize(
    ("holds", "decision", "trigger", "reason"),
    [
        ({"m": HOLD}, override_decision(HOLD), "override", override_decision(HOLD).reason),
        ({}, override_decision(HOLD), "override", "no longer held: 2 workers stay until the policy decides"),
        ({}, Decision(2, "static at 2"), "tick", "static at 2"),
    ],
)
def test_reason_names_only_a_hold_in_force(
    holds: dict[str, Override], decision: Decision, trigger: str, reason: str
) -> None:
    """During a pause, the last decision may be that of a hold that has ended."""
    model = ModelState(Scaling(policy="static"), LIMITS, static.decide, ["sim:0"], Decision(0, "first"))
    autoscaler, log, observation = Autoscaler({"m": model}), DecisionLog(), Observation("m", Queue(0, 0), [])
    log.add(DecisionEvent("m", 0.0, trigger, observation, decision), 0.0)
    standing, ticked = Overrides(holds, paused_since=1.0), autoscaler.tick({"m": observation}, 0.0)
    state = ReportInput(autoscaler, ticked, standing, {}, 1.0, 1.0, 0.0, log.latest, log.after(0), 0, log.last)
    assert build_report(state).models[0].reason == reason
