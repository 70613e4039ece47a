"""The controller's report: the workers of a model, and the reason for their number."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler, DecisionEvent
from controller.autoscaler.model_state import ModelState
from controller.autoscaler.overrides import Override, Overrides, override_decision
from controller.policies import static
from controller.runtime.decision_log import DecisionLog
from controller.runtime.report import ReportInput, build_report
from controller.types import Decision, Observation, Queue, Replica, Stage, WorkerLimits
from host.types import WorkerProcess
from wire.scaling import ControllerReport

LIMITS = WorkerLimits(min_workers=0, max_workers=4, start_timeout_s=60, drain_timeout_s=60, lost_after_s=10)
HOLD = Override(2, 1e9)


def report_of(decided: DecisionEvent, holds: Mapping[str, Override]) -> ControllerReport:
    """Return the report of a paused controller with one model `m`."""
    model = ModelState(Scaling(policy="static"), LIMITS, static.decide, ["sim:0"], Decision(0, "first"))
    autoscaler, log, now = Autoscaler({"m": model}), DecisionLog(), 1.0
    log.add(decided, now)
    standing, ticked = Overrides(holds, paused_since=now), autoscaler.tick({"m": decided.observation}, now)
    state = ReportInput(autoscaler, ticked, standing, {}, now, now, 0.0, log.latest, log.after(0), 0, log.last)
    return build_report(state)


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
    decided = DecisionEvent("m", 0.0, trigger, Observation("m", Queue(0, 0), []), decision)
    assert report_of(decided, holds).models[0].reason == reason


def test_silent_worker_is_not_ready() -> None:
    """A worker that the balancer has given up stays for a while, until it counts as stuck."""
    replicas = [
        Replica(WorkerProcess(f"w{number}", "m", f"sim:{number}", number, 0.0), stage, silent_since=silent_since)
        for number, (stage, silent_since) in enumerate(
            [(Stage.READY, None), (Stage.READY, 0.5), (Stage.DRAINING, 0.5), (Stage.STARTING, None)]
        )
    ]
    report = report_of(DecisionEvent("m", 0.0, "tick", Observation("m", Queue(0, 0), replicas), Decision(3, "why")), {})
    assert [replica.stage for replica in report.replicas] == ["ready", "silent", "draining", "starting"]
    assert [(model.ready, model.starting, model.draining) for model in report.models] == [(1, 1, 1)]
    assert [decision.ready for decision in report.decisions] == [1]
