"""Adds standby workers to a plan: activations in place of starts, and the number of standby workers. Pure.

A standby worker is no capacity and uses no device, so the plan itself is made without them. Each start in the plan
becomes the activation of a standby worker, if there is one. A loaded one is preferred, but one that still loads is also
ahead of a new process. Standby workers have low priority: one starts at a time, and none while a worker of its model
starts, because both need the same disk and CPU cores.

A standby worker is on one machine and can only be activated there. A model's standby workers are spread: the next one
starts on the usable machine with the fewest of them, then on one with the weights, then with the fewest workers of the
model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from configs.devices import kind_of, machine_of, on_machine
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
    WorkerLimits,
)
from host.types import WorkerProcess


@dataclass(frozen=True, slots=True)
class StandbyTarget:
    """One model's standby workers, and their desired number."""

    observation: Observation
    count: int
    #: Kinds of its workers' devices: `cuda`, `cpu` or `sim`, and `gpu-box/cuda` on another machine, the best first.
    kinds: Sequence[str]
    limits: WorkerLimits
    #: Crash records of standby workers and of workers; they often share a cause.
    crashes: CrashBackoff
    worker_crashes: CrashBackoff
    #: Outdated standby workers, and the reason.
    outdated: Mapping[str, str] = field(default_factory=dict)
    #: Machines on which nothing starts now, and those that have the weights.
    unusable: Collection[str] = ()
    with_weights: Collection[str] = ("",)


def with_standby(plan: Plan, models: Sequence[StandbyTarget], now: float) -> Plan:
    """Return the plan with activations in place of starts, and with the desired number of standby workers."""
    concerned = [target for target in models if target.count or target.observation.spares]
    if not concerned:
        return plan
    available = {target.observation.model: _usable(target) for target in concerned}
    actions = [_from_standby(action, available) for action in plan.actions]
    used = {action.id for action in actions if isinstance(action, Activate)}
    coming = {action.model for action in actions if isinstance(action, Start | Activate)}
    drained = {action.id for action in plan.actions if isinstance(action, Drain)}
    for target in concerned:
        starting = any(
            replica.stage is Stage.STARTING and replica.process.id not in drained
            for replica in target.observation.replicas
        )
        left = [child for child in target.observation.spares if child.id not in used]
        actions += _adjust(target, left, busy=starting or target.observation.model in coming, now=now)
    return replace(plan, actions=actions)


def count_ready(spares: Sequence[WorkerProcess], kinds: Collection[str]) -> int:
    """Return the number of loaded standby workers for these kinds of devices."""
    return sum(child.drained_at is None and child.loaded_at is not None and child.device in kinds for child in spares)


def _usable(target: StandbyTarget) -> list[WorkerProcess]:
    """Return the standby workers that can be activated, in that order."""
    able = [
        child for child in target.observation.spares if child.drained_at is None and child.id not in target.outdated
    ]
    return _by_readiness([child for child in able if child.device in target.kinds])


def _by_readiness(spares: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Loaded ones first, then the oldest."""
    return sorted(spares, key=lambda child: (child.loaded_at is None, child.started_at))


def _spread(spares: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Return them in the order in which they stay: loaded ones first, and by turns of each machine."""
    turns = Counter[str]()
    turn = {}
    for child in _by_readiness(spares):
        turn[child.id] = turns[child.device]
        turns[child.device] += 1
    return sorted(_by_readiness(spares), key=lambda child: (child.loaded_at is None, turn[child.id]))


def as_replica(spare: WorkerProcess) -> Replica:
    """Return it as a replica that is ready once it has loaded, so that the crash rules apply."""
    stage = Stage.STARTING if spare.loaded_at is None else Stage.READY
    return Replica(replace(spare, ready_at=spare.loaded_at), stage)


def _from_standby(action: Action, available: dict[str, list[WorkerProcess]]) -> Action:
    """Return the activation of a standby worker of the same machine in place of a start, if there is one."""
    if isinstance(action, Start):
        kind = on_machine(machine_of(action.device), kind_of(action.device))
        for child in available.get(action.model, ()):
            if child.device == kind:
                available[action.model].remove(child)
                return Activate(child.id, action.model, action.device, action.reason)
    return action


def _next_kind(target: StandbyTarget, staying: Sequence[WorkerProcess]) -> str | None:
    """Return the kind of device, with its machine, for the next standby worker; None if no machine can be used."""
    usable = [kind for kind in target.kinds if machine_of(kind) not in target.unusable]
    spares = Counter(machine_of(child.device) for child in staying)
    workers = Counter(machine_of(replica.process.device) for replica in target.observation.replicas)

    def cost(kind: str) -> tuple[int, bool, int]:
        machine = machine_of(kind)
        return spares[machine], machine not in target.with_weights, workers[machine]

    return min(usable, key=cost, default=None)


def _adjust(target: StandbyTarget, spares: Sequence[WorkerProcess], *, busy: bool, now: float) -> Iterator[Action]:
    """Return the actions that reach the desired number; `busy`: a worker starts."""
    staying = []
    for child in spares:
        if child.drained_at is not None:
            if now - child.drained_at > DRAIN_GRACE_S:
                yield Kill(child.id, f"still there {now - child.drained_at:.0f} s after its drain began")
        elif child.loaded_at is None and now - child.started_at > target.limits.start_timeout_s:
            yield Kill(
                child.id, f"not loaded {target.limits.start_timeout_s:g} s after its start (workers.start_timeout_s)"
            )
        elif child.id in target.outdated:
            yield Drain(child.id, target.outdated[child.id])
        elif child.device not in target.kinds:
            yield Drain(child.id, f"no device of its kind ({child.device}) is used any more")
        else:
            staying.append(child)
    for child in _spread(staying)[target.count :]:
        yield Drain(child.id, f"{len(staying)} standby workers, standby is {target.count}")
    # One that is killed for a start timeout counts as loading: its replacement waits for the back-off after its exit.
    loading = any(child.loaded_at is None and child.drained_at is None for child in spares)
    patient = now >= max(target.crashes.retry_at, target.worker_crashes.retry_at)
    if len(staying) < target.count and not busy and not loading and patient:
        kind = _next_kind(target, staying)
        if kind is not None:
            text = f"{len(staying)} standby workers, standby is {target.count}"
            yield Start(target.observation.model, kind, text, standby=True)
