"""Adds standby workers to a plan: activations in place of starts, and the number of standby workers. Pure.

A standby worker is no capacity and uses no device, so the plan itself is made without them. Each start in the plan
becomes the activation of a standby worker, if there is one. A loaded one is preferred, but one that still loads is also
ahead of a new process. Standby workers have low priority: one starts at a time, and none while a worker of its model
starts, because both need the same disk and CPU cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controller.planning.plan import Plan
from controller.planning.scale_down import DRAIN_GRACE_S
from controller.types import (
    Action,
    Activate,
    CrashBackoff,
    Drain,
    Kill,
    Observation,
    Replica,
    Stage,
    Start,
    StartSpare,
    WorkerLimits,
)
from host.types import WorkerProcess


@dataclass(frozen=True, slots=True)
class StandbyTarget:
    """One model's standby workers, and their desired number."""

    observation: Observation
    count: int
    #: Kind of its workers' devices: `cuda`, `cpu` or `sim`.
    kind: str
    limits: WorkerLimits
    #: Crash records of standby workers and of workers; they often share a cause.
    crashes: CrashBackoff
    worker_crashes: CrashBackoff
    #: Outdated standby workers, and the reason.
    outdated: Mapping[str, str] = field(default_factory=dict)


def with_standby(plan: Plan, models: Sequence[StandbyTarget], now: float) -> Plan:
    """Return the plan with activations in place of starts, and with the desired number of standby workers."""
    concerned = [target for target in models if target.count or target.observation.spares]
    if not concerned:
        return plan
    available = {target.observation.model: [child.id for child in _usable(target)] for target in concerned}
    actions = [_from_standby(action, available) for action in plan.actions]
    used = {action.id for action in actions if isinstance(action, Activate)}
    coming = {action.model for action in actions if isinstance(action, Start | Activate)}
    for target in concerned:
        starting = any(replica.stage is Stage.STARTING for replica in target.observation.replicas)
        left = [child for child in target.observation.spares if child.id not in used]
        actions += _adjust(target, left, busy=starting or target.observation.model in coming, now=now)
    return replace(plan, actions=actions)


def count_ready(spares: Sequence[WorkerProcess], kind: str) -> int:
    """Return the number of loaded standby workers for this kind of device."""
    return sum(child.drained_at is None and child.loaded_at is not None and child.device == kind for child in spares)


def _usable(target: StandbyTarget) -> list[WorkerProcess]:
    """Return the standby workers that can be activated, in that order."""
    able = [
        child for child in target.observation.spares if child.drained_at is None and child.id not in target.outdated
    ]
    return _by_readiness([child for child in able if child.device == target.kind])


def _by_readiness(spares: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Loaded ones first, then the oldest."""
    return sorted(spares, key=lambda child: (child.loaded_at is None, child.started_at))


def as_replica(spare: WorkerProcess) -> Replica:
    """Return it as a replica that is ready once it has loaded, so that the crash rules apply."""
    stage = Stage.STARTING if spare.loaded_at is None else Stage.READY
    return Replica(replace(spare, ready_at=spare.loaded_at), stage)


def _from_standby(action: Action, available: dict[str, list[str]]) -> Action:
    """Return the activation of a standby worker in place of a start, if one is loaded."""
    if isinstance(action, Start) and available.get(action.model):
        return Activate(available[action.model].pop(0), action.model, action.device, action.reason)
    return action


def _adjust(target: StandbyTarget, spares: Sequence[WorkerProcess], *, busy: bool, now: float) -> Iterator[Action]:
    """Return the actions that reach the desired number; `busy`: a worker starts."""
    staying = []
    for child in spares:
        if child.drained_at is not None:
            if now - child.drained_at > DRAIN_GRACE_S:
                yield Kill(child.id, f"still there {now - child.drained_at:.0f} s after its drain began")
        elif child.loaded_at is None and now - child.started_at > target.limits.start_timeout_s:
            yield Kill(child.id, f"not loaded {target.limits.start_timeout_s:g} s after its start")
        elif child.id in target.outdated:
            yield Drain(child.id, target.outdated[child.id])
        elif child.device != target.kind:
            yield Drain(child.id, f"no device of its kind ({child.device}) is used any more")
        else:
            staying.append(child)
    for child in _by_readiness(staying)[target.count :]:
        yield Drain(child.id, f"{len(staying)} standby workers, standby is {target.count}")
    # One that is killed for a start timeout counts as loading: its replacement waits for the back-off after its exit.
    loading = any(child.loaded_at is None and child.drained_at is None for child in spares)
    patient = now >= max(target.crashes.retry_at, target.worker_crashes.retry_at)
    if len(staying) < target.count and not busy and not loading and patient:
        yield StartSpare(
            target.observation.model, target.kind, f"{len(staying)} standby workers, standby is {target.count}"
        )
