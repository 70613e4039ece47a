"""From what is wanted and what there is to what must be done. Pure, and recomputed from the whole each time: doing
nothing, or doing it twice, is harmless.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from controller.replica import Action, Crashes, Decision, Drain, Exit, Kill, Limits, Observation, Replica, Stage, Start

#: How much longer than `drain_timeout_s` a draining worker may take: it hands its tasks back at the timeout.
DRAIN_GRACE_S = 10.0
#: A worker that served for this long was healthy: its death is no reason to wait.
HEALTHY_AFTER_S = 30.0
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


def make_plan(wanted: Sequence[Wanted], now: float) -> Plan:
    """Kill what hangs, drain what is too much, start what is missing, on devices that nobody holds."""
    actions: list[Action] = []
    obstacles: dict[str, str] = {}
    held = Counter(replica.child.device for own in wanted for replica in own.seen.replicas)
    for own in wanted:
        kills = [kill for replica in own.seen.replicas if (kill := _kill(replica, own.limits, now))]
        doomed = {kill.id for kill in kills}
        alive = [r for r in own.seen.replicas if r.stage is not Stage.DRAINING and r.child.id not in doomed]
        actions += kills
        surplus = len(alive) - own.decision.desired
        if surplus > 0:
            actions += [Drain(r.child.id, own.decision.reason) for r in _least_missed(alive)[:surplus]]
        elif surplus < 0:
            starts, obstacle = _starts(own, -surplus, held, now)
            actions += starts
            if obstacle:
                obstacles[own.seen.model] = obstacle
    return Plan(actions, obstacles)


def _kill(replica: Replica, limits: Limits, now: float) -> Kill | None:
    child = replica.child
    match replica.stage:
        case Stage.STARTING if now - child.started_at > limits.start_timeout_s:
            return Kill(child.id, f"not ready {limits.start_timeout_s:g} s after its start")
        case Stage.DRAINING if now - (child.drained_at or now) > limits.drain_timeout_s + DRAIN_GRACE_S:
            return Kill(child.id, f"still there {now - (child.drained_at or now):.0f} s after it was told to go")
        case Stage.READY if now - (replica.unheard_since or now) > _HANGING_AFTER * limits.lost_after_s:
            return Kill(child.id, f"not heard by the balancer for {now - (replica.unheard_since or now):.0f} s")
    return None


def _least_missed(replicas: Sequence[Replica]) -> list[Replica]:
    """In the order in which to let them go: still starting, then least busy, then newest."""
    return sorted(replicas, key=lambda r: (r.stage is not Stage.STARTING, r.load, -r.child.started_at))


def _starts(own: Wanted, missing: int, held: Counter[str], now: float) -> tuple[list[Start], str | None]:
    """Starts on free devices; `held` is updated."""
    if now < own.crashes.retry_at:
        crashes = "1 crash" if own.crashes.count == 1 else f"{own.crashes.count} crashes in a row"
        return [], f"{crashes}, next try in {own.crashes.retry_at - now:.0f} s"
    starts: list[Start] = []
    room = Counter(own.slots)
    for device in dict.fromkeys(own.slots):
        while len(starts) < missing and held[device] < room[device]:
            held[device] += 1
            starts.append(Start(own.seen.model, device, own.decision.reason))
    short = missing - len(starts)
    return starts, f"{short} more wanted, but every device is taken" if short else None


def after_exit(crashes: Crashes, ended: Exit) -> tuple[Crashes, bool]:
    """The model's crash record after this exit, and whether the exit was a crash.

    A worker that was told to go did not crash. One that dies before it has served for `HEALTHY_AFTER_S` delays the
    next start by 1, 2, 4, ... 60 s; one that dies later is replaced at once.
    """
    child = ended.child
    if child.drained_at is not None:
        return crashes, False
    if child.ready_at is not None and ended.at - child.ready_at >= HEALTHY_AFTER_S:
        return Crashes(), True
    count = crashes.count + 1
    return Crashes(count, ended.at + min(2.0 ** (count - 1), _LONGEST_BACK_OFF_S)), True


def device_slots(gpus: Sequence[int], cores: int, least: int) -> list[str]:
    """The devices of this machine, each as often as workers may share it: GPUs, or CPU slots where there is none.

    `gpus` are the driver's numbers; `least` is the sum of all `min_workers`: what a user asks for gets a place, if
    need be beside another.
    """
    names = [f"cuda:{index}" for index in gpus] or [f"cpu:{slot}" for slot in range(max(cores, least))]
    return list(itertools.islice(itertools.cycle(names), max(len(names), least)))
