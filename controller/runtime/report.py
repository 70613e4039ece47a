"""What the controller tells of itself: its decisions as a ring, and how everything stands. Pure.

Times inside are those of the brain's clock; what is told carries Unix seconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controller.autoscaler.autoscaler import Brain, Decided, Model
from controller.autoscaler.cold_start import expected_s
from controller.autoscaler.overrides import Standing
from controller.planning.plan import Plan
from controller.planning.rolling_update import outdated, told
from controller.planning.standby import ready
from controller.types import Device, Observation, Replica, Stage
from wire.scaling import (
    MAX_DECISIONS,
    MAX_DECISIONS_PER_REPORT,
    CommandResult,
    ControllerReport,
    DecisionRecord,
    DeviceRecord,
    ModelRecord,
    OverrideRecord,
    ReplicaRecord,
)

_LONGEST_TEXT, _LONGEST_NAME, _MOST_INPUTS = 4000, 100, 50


class DecisionLog:
    """The last decisions, numbered on and on."""

    def __init__(self, last: int = 0) -> None:
        """`last` is the number of the last decision of a predecessor."""
        self.last = last
        self._ring: deque[DecisionRecord] = deque(maxlen=MAX_DECISIONS)

    def add(self, decided: Decided, wall: float) -> DecisionRecord:
        """Put a decision in, made at `wall` in Unix seconds."""
        self.last += 1
        seen, decision = decided.seen, decided.decision
        record = DecisionRecord(
            number=self.last,
            time=wall,
            model=decided.model,
            trigger=decided.woken,
            provisioned=seen.provisioned,
            ready=_count(seen, Stage.READY),
            desired=decision.desired,
            valid=decision.valid,
            reason=clip(decision.reason),
            inputs=_numbers(decision.inputs),
        )
        self._ring.append(record)
        return record

    def after(self, number: int) -> tuple[DecisionRecord, ...]:
        """The oldest decisions of higher numbers, as many as a report holds."""
        newer = [record for record in self._ring if record.number > number]
        return tuple(newer[:MAX_DECISIONS_PER_REPORT])

    def latest(self, model: str) -> DecisionRecord | None:
        """The model's last decision."""
        return next((record for record in reversed(self._ring) if record.model == model), None)


@dataclass(frozen=True, slots=True)
class ReportInput:
    """All that a report is made of. `now` is on the brain's clock, `wall` the same moment in Unix seconds."""

    brain: Brain
    seen: Mapping[str, Observation]
    plan: Plan
    standing: Standing
    #: What people call the devices.
    names: Mapping[str, str]
    now: float
    wall: float
    began: float


def report(
    view: ReportInput, chronicle: DecisionLog, decisions_to: int, obeyed: Sequence[CommandResult]
) -> ControllerReport:
    """How everything stands, with the decisions that the balancer lacks."""
    models = view.brain.models
    return ControllerReport(
        time=view.wall,
        uptime_s=view.now - view.began,
        models=tuple(_model(view, name, models[name], chronicle) for name in view.seen if name in models),
        replicas=tuple(
            _replica(view, models[name], replica)
            for name, seen in view.seen.items()
            if name in models
            for replica in [*seen.replicas, *(Replica(spare, Stage.STARTING) for spare in seen.spares)]
        ),
        devices=tuple(_devices(view)),
        paused_since=view.standing.paused_since,
        decisions_after=decisions_to,
        decisions=chronicle.after(decisions_to),
        last_decision=chronicle.last,
        command_results=tuple(obeyed),
        swaps=view.brain.swaps,
    )


def _model(view: ReportInput, name: str, model: Model, chronicle: DecisionLog) -> ModelRecord:
    seen, latest, hold = view.seen[name], chronicle.latest(name), view.standing.holds.get(name)
    old = outdated(seen.replicas, model.rule, view.now)
    return ModelRecord(
        model=name,
        min_workers=model.limits.min_workers,
        max_workers=model.limits.max_workers,
        desired=model.decision.desired,
        provisioned=seen.provisioned + model.lost,
        ready=_count(seen, Stage.READY),
        starting=_count(seen, Stage.STARTING),
        draining=_count(seen, Stage.DRAINING),
        policy=model.scaling.policy,
        reason=latest.reason if latest else model.decision.reason,
        inputs=latest.inputs if latest else {},
        blocked_reason=clip(view.plan.obstacles.get(name, "")),
        override=OverrideRecord(hold.workers, hold.until) if hold else None,
        crashes=model.crashes.count,
        rolling_update=told(seen.replicas, old, model.crashes),
        spares=len(seen.spares),
        cold_start_s=expected_s(model.starts, model.scaling, seen.cold_start_s, ready(seen.spares, model.kind)),
    )


def _replica(view: ReportInput, model: Model, replica: Replica) -> ReplicaRecord:
    child = replica.child
    stage = "spare" if child.spare else "stuck" if replica.stuck else replica.stage.value
    return ReplicaRecord(
        worker=child.id,
        model=child.model,
        device=child.device,
        pid=child.pid,
        stage=stage,
        load=replica.load,
        age_s=view.now - child.started_at,
        generation=child.generation,
        outdated=next(iter(outdated([replica], model.rule, view.now).values()), "") if not child.spare else "",
    )


def _devices(view: ReportInput) -> list[DeviceRecord]:
    """Every device that a worker may have, or has."""
    replicas = [replica for seen in view.seen.values() for replica in seen.replicas]
    known: dict[str, Device] = view.brain.pool.look(replicas, view.now)
    slots = [slot for model in view.brain.models.values() for slot in model.slots]
    workers: dict[str, list[str]] = {name: [] for name in [*known, *slots]}
    for replica in replicas:
        workers.setdefault(replica.child.device, []).append(replica.child.id)
    return [
        DeviceRecord(
            device=name,
            name=view.names.get(name, ""),
            workers=tuple(here),
            memory_bytes=known[name].memory if name in known else None,
            unhealthy_reason=clip(known[name].fault) if name in known else "",
        )
        for name, here in workers.items()
    ]


def clip(text: str) -> str:
    """The text as a report can hold it: one that is refused for its length would be refused for ever."""
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."


def _numbers(inputs: Mapping[str, object]) -> dict[str, float]:
    """What can be told of a decision's inputs. A user's own policy may put anything there."""
    numbers = {name[:_LONGEST_NAME]: float(value) for name, value in inputs.items() if isinstance(value, int | float)}
    return {name: value for name, value in list(numbers.items())[:_MOST_INPUTS] if math.isfinite(value)}


def _count(seen: Observation, stage: Stage) -> int:
    return sum(replica.stage is stage for replica in seen.replicas)
