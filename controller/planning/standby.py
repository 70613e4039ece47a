"""From a plan to one that uses spares and keeps their number. Pure.

A spare is no capacity and holds no device, so the plan itself is made without them. Whoever is to start is taken from
them: one that has loaded, or else one that is still loading, which is ahead of a new process all the same. They come
last: none is started while a worker of its model starts, which needs the same disk and cores, and one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controller.planning.plan import Plan
from controller.planning.scale_down import DRAIN_GRACE_S
from controller.types import (
    Action,
    Activate,
    Child,
    Crashes,
    Drain,
    Kill,
    Limits,
    Observation,
    Replica,
    Stage,
    Start,
    StartSpare,
)


@dataclass(frozen=True, slots=True)
class Keeping:
    """One model's spares, and how many there should be."""

    seen: Observation
    wanted: int
    #: Kind of the devices that its workers run on: `cuda`, `cpu` or `sim`.
    kind: str
    limits: Limits
    #: Of spares that died, and of workers: what ends the one may end the other.
    crashes: Crashes
    worker_crashes: Crashes
    #: Those that loaded what is to be served no more, and why.
    outdated: Mapping[str, str] = field(default_factory=dict)


def with_spares(plan: Plan, models: Sequence[Keeping], now: float) -> Plan:
    """The plan with spares in the place of starts, and with what keeps so many of them as are wanted."""
    concerned = [own for own in models if own.wanted or own.seen.spares]
    if not concerned:
        return plan
    waiting = {own.seen.model: [child.id for child in _of_use(own)] for own in concerned}
    actions = [_from_standby(action, waiting) for action in plan.actions]
    used = {action.id for action in actions if isinstance(action, Activate)}
    coming = {action.model for action in actions if isinstance(action, Start | Activate)}
    for own in concerned:
        starting = any(replica.stage is Stage.STARTING for replica in own.seen.replicas)
        left = [child for child in own.seen.spares if child.id not in used]
        actions += _kept(own, left, busy=starting or own.seen.model in coming, now=now)
    return replace(plan, actions=actions)


def ready(spares: Sequence[Child], kind: str) -> int:
    """How many have loaded and could have a device of this kind now."""
    return sum(child.drained_at is None and child.loaded_at is not None and child.device == kind for child in spares)


def _of_use(own: Keeping) -> list[Child]:
    """Those that can be called, in the order in which to call them."""
    able = [child for child in own.seen.spares if child.drained_at is None and child.id not in own.outdated]
    return _foremost([child for child in able if child.device == own.kind])


def _foremost(spares: Sequence[Child]) -> list[Child]:
    """Those that have loaded first, and of equals the oldest."""
    return sorted(spares, key=lambda child: (child.loaded_at is None, child.started_at))


def as_serving(spare: Child) -> Replica:
    """The spare as if to have loaded were to serve: so the rules for crashes hold for both."""
    stage = Stage.STARTING if spare.loaded_at is None else Stage.READY
    return Replica(replace(spare, ready_at=spare.loaded_at), stage)


def _from_standby(action: Action, waiting: dict[str, list[str]]) -> Action:
    """The activation of a spare in the place of a start, where one waits."""
    if isinstance(action, Start) and waiting.get(action.model):
        return Activate(waiting[action.model].pop(0), action.model, action.device, action.reason)
    return action


def _kept(own: Keeping, spares: Sequence[Child], *, busy: bool, now: float) -> Iterator[Action]:
    """What brings the number of these spares to what is wanted; `busy`: a worker starts."""
    staying = []
    for child in spares:
        if child.drained_at is not None:
            if now - child.drained_at > DRAIN_GRACE_S:
                yield Kill(child.id, f"still there {now - child.drained_at:.0f} s after it was told to go")
        elif child.loaded_at is None and now - child.started_at > own.limits.start_timeout_s:
            yield Kill(child.id, f"not loaded {own.limits.start_timeout_s:g} s after its start")
        elif child.id in own.outdated:
            yield Drain(child.id, own.outdated[child.id])
        elif child.device != own.kind:
            yield Drain(child.id, f"no device of its kind ({child.device}) is in use any more")
        else:
            staying.append(child)
    for child in _foremost(staying)[own.wanted :]:
        yield Drain(child.id, f"{len(staying)} spares where standby is {own.wanted}")
    # One that is to be ended for not loading counts here too: its successor waits for the pause that follows its end.
    loading = any(child.loaded_at is None and child.drained_at is None for child in spares)
    patient = now >= max(own.crashes.retry_at, own.worker_crashes.retry_at)
    if len(staying) < own.wanted and not busy and not loading and patient:
        yield StartSpare(own.seen.model, own.kind, f"{len(staying)} spares where standby is {own.wanted}")
