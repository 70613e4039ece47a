"""From what is wanted and what there is to what must be done. Pure, and recomputed from the whole each time: doing
nothing, or doing it twice, is harmless.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.replica import Action, Crashes, Decision, Drain, Exit, Kill, Limits, Observation, Replica, Stage, Start

#: How much longer than `drain_timeout_s` a draining worker may take: it hands its tasks back at the timeout.
DRAIN_GRACE_S = 10.0
#: A worker that served for this long was healthy: its death is no reason to wait.
HEALTHY_AFTER_S = 30.0
#: A worker started after a crash that has served for this long shows that the model is well again.
_FORGIVEN_AFTER_S = 60.0
_LONGEST_BACK_OFF_S = 60.0
#: A worker that the balancer has not heard for so many times `lost_after_s` hangs.
_HANGING_AFTER = 3.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model's part of the plan."""

    seen: Observation
    decision: Decision
    limits: Limits
    crashes: Crashes
    #: Devices that its workers may have; a device that stands here twice may have two.
    slots: Sequence[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and what could not be done and why, by model."""

    actions: Sequence[Action]
    obstacles: dict[str, str]


@dataclass(slots=True)
class _Devices:
    """How many workers are on each device, and how many places are promised to a model that must wait for its own."""

    held: Counter[str]
    promised: Counter[frozenset[str]] = field(default_factory=Counter)

    def take(self, slots: Sequence[str]) -> str | None:
        """A place on the least used device, now taken; None where each is as full as it may be."""
        room = Counter(slots)
        free = [device for device in room if self.held[device] < room[device]]
        if sum(room[device] - self.held[device] for device in free) <= self.promised[frozenset(slots)]:
            return None
        device = min(free, key=lambda device: self.held[device])
        self.held[device] += 1
        return device


def make_plan(wanted: Sequence[Wanted], now: float) -> Plan:
    """Kill what hangs, drain what is too much, start what is missing, on devices that nobody holds.

    What a model lacks to its minimum is started before anything else, and where it must wait, after a crash, its place
    is kept: a busy model never takes the device of another's only worker.
    """
    actions: list[Action] = []
    alive: list[int] = []
    for own in wanted:
        leaving, staying = _leave(own, now)
        actions += leaving
        alive.append(staying)
    devices = _Devices(Counter(replica.child.device for own in wanted for replica in own.seen.replicas))
    for number, own in enumerate(wanted):
        starts = _starts(own, own.limits.min_workers - alive[number], devices, now)
        alive[number] += len(starts)
        actions += starts
        devices.promised[frozenset(own.slots)] += max(own.limits.min_workers - alive[number], 0)
    obstacles: dict[str, str] = {}
    for number, own in enumerate(wanted):
        starts = _starts(own, own.decision.desired - alive[number], devices, now)
        actions += starts
        short = own.decision.desired - alive[number] - len(starts)
        if short > 0:
            obstacles[own.seen.model] = _obstacle(own, short, now)
    return Plan(actions, obstacles)


def _leave(own: Wanted, now: float) -> tuple[list[Action], int]:
    """The workers that must go, and how many stay as capacity."""
    kills = [kill for replica in own.seen.replicas if (kill := _kill(replica, own.limits, now))]
    doomed = {kill.id for kill in kills}
    alive = [r for r in own.seen.replicas if r.stage is not Stage.DRAINING and r.child.id not in doomed]
    surplus = max(len(alive) - own.decision.desired, 0)
    drains = [Drain(r.child.id, own.decision.reason) for r in _least_missed(alive)[:surplus]]
    return [*kills, *drains], len(alive) - surplus


def _kill(replica: Replica, limits: Limits, now: float) -> Kill | None:
    child = replica.child
    match replica.stage:
        case Stage.STARTING if now - child.started_at > limits.start_timeout_s:
            return Kill(child.id, f"not ready {limits.start_timeout_s:g} s after its start")
        case Stage.DRAINING if now - (child.drained_at or now) > limits.drain_timeout_s + DRAIN_GRACE_S:
            return Kill(child.id, f"still there {now - (child.drained_at or now):.0f} s after it was told to go")
        case Stage.READY if replica.stuck:
            return Kill(child.id, "it is stuck: it heartbeats, but makes no step")
        case Stage.READY if now - (replica.unheard_since or now) > _HANGING_AFTER * limits.lost_after_s:
            return Kill(child.id, f"not heard by the balancer for {now - (replica.unheard_since or now):.0f} s")
    return None


def _least_missed(replicas: Sequence[Replica]) -> list[Replica]:
    """In the order in which to let them go: still starting, then least busy, then newest."""
    return sorted(replicas, key=lambda r: (r.stage is not Stage.STARTING, r.load, -r.child.started_at))


def _starts(own: Wanted, missing: int, devices: _Devices, now: float) -> list[Start]:
    """As many starts as are missing and have a place."""
    starts: list[Start] = []
    while len(starts) < missing and now >= own.crashes.retry_at and (device := devices.take(own.slots)):
        starts.append(Start(own.seen.model, device, own.decision.reason))
    return starts


def _obstacle(own: Wanted, short: int, now: float) -> str:
    """Why a model has fewer workers than it should."""
    if now >= own.crashes.retry_at:
        return f"{short} more wanted, but every device is taken"
    crashes = "1 crash" if own.crashes.count == 1 else f"{own.crashes.count} crashes in a row"
    return f"{crashes}, next try in {own.crashes.retry_at - now:.0f} s"


def after_exit(crashes: Crashes, ended: Exit) -> tuple[Crashes, bool]:
    """The model's crash record after this exit, and whether the exit was a crash.

    A worker that was told to go, by us or by its operator (status 0), did not crash. One that dies before it has
    served for `HEALTHY_AFTER_S` delays the next start by 1, 2, 4, ... 60 s; one that dies later is replaced at once.
    """
    child = ended.child
    if child.drained_at is not None or ended.status == 0:
        return crashes, False
    if child.ready_at is not None and ended.at - child.ready_at >= HEALTHY_AFTER_S:
        return Crashes(), True
    return one_more(crashes, ended.at), True


def one_more(crashes: Crashes, at: float) -> Crashes:
    """The record after one more crash, with the pause that follows from it."""
    count = crashes.count + 1
    return Crashes(count, at + min(2.0 ** (count - 1), _LONGEST_BACK_OFF_S), at)


def forgive(crashes: Crashes, replicas: Sequence[Replica], now: float) -> Crashes:
    """The record, wiped clean when a worker that became ready after the last crash has stayed well."""
    well = (
        replica.stage is Stage.READY
        and replica.child.ready_at is not None
        and crashes.last_at < replica.child.ready_at <= now - _FORGIVEN_AFTER_S
        for replica in replicas
    )
    return Crashes() if any(well) else crashes


def still_owed(lost: int, desired: int, replicas: Sequence[Replica]) -> int:
    """How many of the workers lost since the last full count have no successor yet."""
    present = sum(replica.stage is not Stage.DRAINING for replica in replicas)
    return max(min(lost, desired - present), 0)


def device_slots(gpus: Sequence[int], cores: int, least: int) -> list[str]:
    """The devices of this machine, each as often as workers may share it: GPUs, or CPU slots where there is none.

    `gpus` are the driver's numbers; `least` is the sum of all `min_workers`: what a user asks for gets a place, if
    need be beside another.
    """
    names = [f"cuda:{index}" for index in gpus] or [f"cpu:{slot}" for slot in range(max(cores, least))]
    return list(itertools.islice(itertools.cycle(names), max(len(names), least)))
