"""What holds under every policy: the least and the most, the schedule's floor, and the way to zero workers and back.

With `min_workers: 0` a policy is asked as if the least were 1. The last worker goes when there has been nothing to do
for `scale_to_zero.idle_s`; the first request brings `activation` workers, or as many as its backlog needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from configs.scaling import Scaling, Scheduled
from controller.policies import Policy, schedule
from controller.policies.queueing import workers_for_backlog
from controller.types import Decision, Observation, Queue, WorkerLimits


@dataclass(frozen=True, slots=True)
class PolicyMemory:
    """What is remembered of a model beside its policy's own."""

    #: The policy's own; None before its first decision.
    own: Any = None
    #: Since when there has been nothing to do, on the controller's clock; None while there is, or it is not known.
    idle_since: float | None = None
    #: The balancer's count of tasks begun, as of the last decision.
    dispatched: int = 0

    def shifted(self, seconds: float) -> PolicyMemory:
        """The same with every time so much later."""
        idle_since = None if self.idle_since is None else self.idle_since + seconds
        return replace(self, own=self.own and self.own.shifted(seconds), idle_since=idle_since)


def decide(
    policy: Policy, observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: PolicyMemory, now: float
) -> tuple[Decision, PolicyMemory]:
    """The policy's decision within the bounds. Raises what the policy raises."""
    floor, why = limits.min_workers, f"min_workers is {limits.min_workers}"
    if scaling.schedule and (entry := schedule.active_entry(scaling.schedule, observation.unix_s)):
        floor, why = _scheduled_floor(entry, limits)
    if observation.queue is None:
        return _without_data(observation, limits, floor, why), replace(memory, idle_since=None)
    memory = _track(memory, observation.queue, now)
    if (
        floor == 0
        and observation.provisioned == 0
        and not (observation.queue.queued or observation.queue.proxied_in_flight)
    ):
        return Decision(0, "nothing waits"), memory
    if floor == 0 and observation.provisioned == 1 and memory.idle_since is not None:
        idle_s = now - memory.idle_since
        if idle_s >= scaling.scale_to_zero.idle_s:
            return Decision(0, f"nothing to do for {idle_s:.0f} s"), memory
    decision, own = policy(observation, scaling, replace(limits, min_workers=max(floor, 1)), memory.own, now)
    memory = replace(memory, own=own)
    if floor == 0 and observation.provisioned == 0:
        decision = _from_zero(decision, observation, scaling, now)
    if not decision.valid:
        return decision, memory
    if decision.desired < floor:
        decision = replace(decision, desired=floor, reason=f"{why}; else {decision.desired}: {decision.reason}")
    minimum = max(floor, 1)
    return replace(decision, desired=min(max(decision.desired, minimum), limits.max_workers)), memory


def _scheduled_floor(entry: Scheduled, limits: WorkerLimits) -> tuple[int, str]:
    """Return the minimum that the schedule raises, and the reason for it."""
    if entry.workers <= limits.min_workers:
        return limits.min_workers, f"min_workers is {limits.min_workers}"
    return min(entry.workers, limits.max_workers), f"schedule {entry.cron!r} says at least {entry.workers}"


def _without_data(observation: Observation, limits: WorkerLimits, floor: int, why: str) -> Decision:
    """Nothing is known of the queue: the bounds hold, and nothing else changes."""
    if observation.provisioned < floor:
        return Decision(floor, why)
    if observation.provisioned > limits.max_workers:
        return Decision(limits.max_workers, f"max_workers is {limits.max_workers}")
    return Decision(observation.provisioned, "no data", valid=False)


def _track(memory: PolicyMemory, queue: Queue, now: float) -> PolicyMemory:
    """Since when there has been nothing to do. A task that came and went between two looks was something."""
    idle = not (queue.queued or queue.running or queue.proxied_in_flight)
    started = queue.started_total != memory.dispatched
    since = now if started or memory.idle_since is None else memory.idle_since
    return replace(memory, idle_since=since if idle else None, dispatched=queue.started_total)


def _from_zero(decision: Decision, observation: Observation, scaling: Scaling, now: float) -> Decision:
    """From no worker at all: at once, and to what the backlog needs."""
    backlog = workers_for_backlog(observation, scaling, now)
    first = max(scaling.scale_to_zero.activation, backlog)
    if decision.valid and decision.desired >= first:
        return decision
    return replace(decision, desired=first, reason=f"no worker, and there is work: {first} to begin with", valid=True)
