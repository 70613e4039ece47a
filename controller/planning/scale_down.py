"""Selects workers to kill (stuck) or to drain (surplus). Pure."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from configs.devices import machine_of
from controller.planning.rolling_update import next_to_replace
from controller.types import Action, Decision, Drain, Kill, Observation, Replica, Stage, WorkerLimits

#: Time beyond `drain_timeout_s` for a draining worker, which returns its tasks at the timeout.
DRAIN_GRACE_S = 10.0
#: A worker that is silent for this multiple of `lost_after_s` is stuck.
_LOST_FACTOR = 3.0
_NONE: Mapping[str, str] = MappingProxyType({})


def select_to_stop(
    observation: Observation,
    decision: Decision,
    limits: WorkerLimits,
    now: float,
    outdated: Mapping[str, str] = _NONE,
    surge: int = 0,
) -> tuple[list[Action], list[Replica]]:
    """Return the workers to stop, and those that stay as capacity, the least useful first.

    `outdated` maps outdated workers to their reasons. They stop first, as far as more workers than decided are ready.
    `surge` is the number of workers allowed above the decision during a replacement.
    """
    kills, alive = [], []
    for replica in observation.replicas:
        child = replica.process
        match replica.stage:
            case Stage.STARTING if now - child.started_at > limits.start_timeout_s:
                kills.append(
                    Kill(child.id, f"not ready {limits.start_timeout_s:g} s after its start (workers.start_timeout_s)")
                )
            case Stage.DRAINING:
                leaving_s = now - (child.drained_at or now)
                if leaving_s > limits.drain_timeout_s + DRAIN_GRACE_S:
                    kills.append(Kill(child.id, f"still there {leaving_s:.0f} s after its drain began"))
            case Stage.READY if replica.stuck:
                kills.append(
                    Kill(child.id, "it is stuck: it sends heartbeats, but completes no step; its log says where")
                )
            case Stage.READY if now - (replica.silent_since or now) > _LOST_FACTOR * limits.lost_after_s:
                silent_s = now - (replica.silent_since or now)
                kills.append(Kill(child.id, f"it is silent: the balancer has missed it for {silent_s:.0f} s"))
            case _:
                alive.append(replica)
    surplus = max(len(alive) - decision.desired - surge, 0)
    if len(alive) > 1:
        alive = _removal_order(alive, observation.cold_start_s, now)
        _keep_last_ready(alive)
    if outdated:
        first = next_to_replace(alive, decision.desired, outdated)
        names = {replica.process.id for replica in first}
        alive = [*first, *(replica for replica in alive if replica.process.id not in names)]
    drains = [Drain(r.process.id, outdated.get(r.process.id, decision.reason)) for r in alive[:surplus]]
    return [*kills, *drains], alive[surplus:]


def _removal_order(replicas: Sequence[Replica], cold_start_s: float, now: float) -> list[Replica]:
    """Return the workers in the order of their removal: the least useful first.

    Of equally useful ones, the next is always one of the machine with the most workers, so that the last two are on
    different machines.
    """
    cost = functools.partial(_removal_cost, cold_start_s, now)
    order = sorted(replicas, key=lambda replica: (*cost(replica), -replica.process.started_at))
    left = Counter(machine_of(replica.process.device) for replica in order)
    if len(left) < 2:
        return order
    ranks = {}
    for replica in order:
        machine = machine_of(replica.process.device)
        ranks[replica.process.id] = -left[machine]
        left[machine] -= 1
    return sorted(order, key=lambda replica: (*cost(replica), ranks[replica.process.id]))


def _removal_cost(cold_start_s: float, now: float, replica: Replica) -> tuple[int, int]:
    """Return the cost of a removal. Ascending: just started, idle, almost loaded, least busy."""
    started_at = replica.process.started_at
    if replica.stage is Stage.STARTING:
        return 0 if now - started_at < cold_start_s / 2 else 2, replica.load
    return 3 if replica.load else 1, replica.load


def _keep_last_ready(order: list[Replica]) -> None:
    """Move the last ready worker behind the starting ones, because it serves until they are ready."""
    ready = [replica for replica in order if replica.stage is not Stage.STARTING]
    if ready and order[-1].stage is Stage.STARTING:
        order.remove(ready[-1])
        order.append(ready[-1])
