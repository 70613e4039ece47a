"""Builds the controller's report to the balancer. Pure.

Times inside are on the autoscaler's clock; the report carries Unix seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from configs.text import clip
from controller.autoscaler.autoscaler import Autoscaler, TickResult
from controller.autoscaler.overrides import Override, Overrides
from controller.planning.plan import ModelDemand
from controller.planning.rolling_update import describe_progress
from controller.types import Replica, Stage
from host.types import GpuSensors
from wire.scaling import (
    CommandResult,
    ControllerReport,
    DecisionRecord,
    DeviceRecord,
    MachineRecord,
    ModelRecord,
    OverrideRecord,
    ReplicaRecord,
)

#: Longest text in a report. The balancer rejects a report with a longer one.
MAX_TEXT = 4000


@dataclass(frozen=True, slots=True)
class ReportInput:
    """The state that a report describes. `now` is on the autoscaler's clock, `wall` the same moment in Unix seconds."""

    autoscaler: Autoscaler
    result: TickResult
    overrides: Overrides
    #: Product names by device.
    device_names: Mapping[str, str]
    now: float
    wall: float
    started_at: float
    #: The last decision of each model, those that the balancer has not got yet, and their numbers.
    latest: Mapping[str, DecisionRecord]
    decisions: tuple[DecisionRecord, ...]
    acked_decision: int
    last_decision: int
    command_results: tuple[CommandResult, ...] = ()


def build_report(state: ReportInput) -> ControllerReport:
    demands = state.result.demands
    return ControllerReport(
        time=state.wall,
        uptime_s=state.now - state.started_at,
        models=tuple(_model(state, demand) for demand in demands),
        replicas=tuple(
            _replica(state, demand, replica)
            for demand in demands
            for replica in [
                *demand.observation.replicas,
                *(Replica(spare, Stage.STARTING) for spare in demand.observation.spares),
            ]
        ),
        devices=tuple(_devices(state)),
        paused_since=state.overrides.paused_since,
        decisions_after=state.acked_decision,
        decisions=state.decisions,
        last_decision=state.last_decision,
        command_results=state.command_results,
        swaps=state.autoscaler.swaps,
        machines=tuple(_machines(state)) if state.autoscaler.machines.reported else (),
    )


def _model(state: ReportInput, demand: ModelDemand) -> ModelRecord:
    observed, old = demand.observation, demand.outdated
    name, model, plan = observed.model, state.autoscaler.models[observed.model], state.result.plan
    latest = state.latest.get(name)
    hold, blocked = state.overrides.holds.get(name), plan.blocked.get(name)
    stages = Counter(replica.stage for replica in observed.replicas)
    return ModelRecord(
        model=name,
        min_workers=model.limits.min_workers,
        max_workers=model.limits.max_workers,
        desired=model.decision.desired,
        provisioned=observed.provisioned,
        ready=sum(replica.serves for replica in observed.replicas),
        starting=stages[Stage.STARTING],
        draining=stages[Stage.DRAINING],
        policy=model.scaling.policy,
        reason=_reason(latest, model.decision.reason, hold),
        inputs=latest.inputs if latest else {},
        blocked_reason=clip(blocked.reason, MAX_TEXT) if blocked else "",
        override=OverrideRecord(hold.workers, hold.until) if hold else None,
        crashes=model.crashes.count,
        rolling_update=describe_progress(observed.replicas, old, model.crashes) if old else "",
        spares=len(observed.spares),
        cold_start_s=observed.cold_start_s,
        cannot_start=clip(state.autoscaler.cannot_start(name, observed), MAX_TEXT) if model.crashes.count else "",
        # The rest of a kind are names of devices.
        blocked_kind=blocked.kind.partition(" ")[0] if blocked else "",
        crashes_by_kind=dict(model.crashes_by_kind),
    )


def _reason(latest: DecisionRecord | None, decided: str, hold: Override | None) -> str:
    """Return why the model has its number of workers."""
    if latest is None:
        return decided
    if latest.trigger == "override" and hold is None:  # the policy does not decide during a pause
        return f"no longer held: {latest.desired} workers stay until the policy decides"
    return latest.reason


def _replica(state: ReportInput, demand: ModelDemand, replica: Replica) -> ReplicaRecord:
    child = replica.process
    return ReplicaRecord(
        worker=child.id,
        model=child.model,
        device=child.device,
        pid=child.pid,
        stage=_stage(replica),
        load=replica.load,
        age_s=state.now - child.started_at,
        generation=child.generation,
        outdated=demand.outdated.get(child.id, ""),
    )


def _stage(replica: Replica) -> str:
    if replica.process.spare:
        return "spare"
    if replica.stuck:
        return "stuck"
    is_silent = replica.stage is Stage.READY and not replica.serves
    return "silent" if is_silent else replica.stage.value


def _devices(state: ReportInput) -> list[DeviceRecord]:
    """Return every device that a worker may have, or has."""
    replicas = [replica for demand in state.result.demands for replica in demand.observation.replicas]
    known, sensors = state.result.plan.devices, state.autoscaler.pool.sensors
    slots = [slot for model in state.autoscaler.models.values() for slot in model.slots]
    workers: dict[str, list[str]] = {name: [] for name in [*known, *slots]}
    names = dict(state.device_names)
    for machine in state.autoscaler.machines.reported:
        names |= machine.device_names
    for replica in replicas:
        workers.setdefault(replica.process.device, []).append(replica.process.id)
    return [
        DeviceRecord(
            device=name,
            name=names.get(name, ""),
            workers=tuple(ids),
            memory_bytes=known[name].memory if name in known else None,
            unhealthy_reason=clip(known[name].fault, MAX_TEXT) if name in known and known[name].fault else "",
            **(sensors.get(name) or GpuSensors())._asdict(),
        )
        for name, ids in workers.items()
    ]


def _machines(state: ReportInput) -> list[MachineRecord]:
    faults = state.autoscaler.machines.faults(state.now)
    return [
        MachineRecord(
            machine=machine.name,
            last_report_age_s=None if machine.last_report_at is None else max(state.now - machine.last_report_at, 0.0),
            silent=machine.silent,
            unused_reason=clip(faults.get(machine.name, ""), MAX_TEXT),
            models=tuple(sorted(machine.models & state.autoscaler.models.keys())),
            unusable_models={name: clip(reason, MAX_TEXT) for name, reason in machine.unusable_models.items()},
            memory_bytes=machine.memory_bytes,
            available_bytes=machine.available_bytes,
        )
        for machine in state.autoscaler.machines.reported
    ]
