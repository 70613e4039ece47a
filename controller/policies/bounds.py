"""Rules around every policy: `min_workers`, `max_workers`, the schedule's minimum, and scale to zero.

With `min_workers: 0` the policy is called with a minimum of 1. The last worker stops when the model has been idle for
`scale_to_zero.idle_s`. The first request starts `activation` workers, or more if its backlog needs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from configs.scaling import Scaling, Scheduled
from controller.policies import Policy, recurring_load, schedule
from controller.policies.queueing import workers_for_backlog
from controller.policies.recurring_load import RecurringMemory
from controller.types import Decision, Observation, WorkerLimits


@dataclass(frozen=True, slots=True)
class PolicyMemory:
    """The state of a model between two decisions."""

    #: State of the policy itself; None before its first decision.
    own: Any = None
    #: Start of the idle period on the controller's clock; None if the model is busy or unknown.
    idle_since: float | None = None
    #: The balancer's counter of started tasks at the last decision.
    dispatched: int = 0
    #: The load that recurs, if it is learnt.
    recurring: RecurringMemory | None = None

    def shifted(self, seconds: float) -> PolicyMemory:
        """Return a copy with all times moved by `seconds`."""
        idle_since = None if self.idle_since is None else self.idle_since + seconds
        return replace(self, own=self.own and self.own.shifted(seconds), idle_since=idle_since)


def decide(
    policy: Policy, observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: PolicyMemory, now: float
) -> tuple[Decision, PolicyMemory]:
    """Return the policy's decision within the bounds. Raises what the policy raises."""
    if scaling.recurring_load.learn or memory.recurring is not None:
        memory = _learn(memory, observation, scaling)
    floor, floor_reason = limits.min_workers, f"min_workers is {limits.min_workers}"
    if scaling.schedule or memory.recurring is not None:
        floor, floor_reason = _floor(memory, observation, scaling, limits)
    queue = observation.queue
    if queue is None:
        no_data = Decision(observation.provisioned, "no data", valid=False)
        return _within_bounds(no_data, observation, limits, floor, floor_reason), replace(memory, idle_since=None)
    is_idle = not (queue.queued or queue.running or queue.proxied_in_flight)
    # A task that started and ended between two observations interrupts the idle period.
    has_started = queue.started_total != memory.dispatched
    since = now if has_started or memory.idle_since is None else memory.idle_since
    memory = replace(memory, idle_since=since if is_idle else None, dispatched=queue.started_total)
    if floor == 0 and observation.provisioned == 0 and not (queue.queued or queue.proxied_in_flight):
        return Decision(0, "no request waits"), memory
    if floor == 0 and observation.provisioned == 1 and is_idle and now - since >= scaling.scale_to_zero.idle_s:
        return Decision(0, f"idle for {now - since:.0f} s"), memory
    decision, own = policy(observation, scaling, replace(limits, min_workers=max(floor, 1)), memory.own, now)
    memory = replace(memory, own=own)
    if floor == 0 and observation.provisioned == 0:
        decision = _from_zero(decision, observation, scaling, now)
    if not decision.valid:
        floor_reason = f"{decision.reason}; {floor_reason}"
        return _within_bounds(decision, observation, limits, floor, floor_reason), memory
    if decision.desired < floor:
        reason = f"{floor_reason}; the policy wanted {decision.desired}: {decision.reason}"
        decision = replace(decision, desired=floor, reason=reason)
    elif decision.desired == floor > limits.min_workers and scaling.policy != "schedule":  # which has said so itself
        decision = replace(decision, reason=f"{decision.reason}; {floor_reason}")
    minimum = max(floor, 1)
    return replace(decision, desired=min(max(decision.desired, minimum), limits.max_workers)), memory


def _scheduled_floor(entry: Scheduled, limits: WorkerLimits) -> tuple[int, str]:
    """Return the minimum under this schedule entry, and its reason."""
    if entry.workers <= limits.min_workers:
        return limits.min_workers, f"min_workers is {limits.min_workers}"
    return min(entry.workers, limits.max_workers), f"schedule {entry.cron!r} requires at least {entry.workers}"


def _floor(memory: PolicyMemory, observation: Observation, scaling: Scaling, limits: WorkerLimits) -> tuple[int, str]:
    """Return the least number of workers now by `min_workers`, schedule and recurring load, and its reason."""
    floor, reason = limits.min_workers, f"min_workers is {limits.min_workers}"
    if scaling.schedule and (entry := schedule.active_entry(scaling.schedule, observation.unix_s)):
        floor, reason = _scheduled_floor(entry, limits)
    learnt = 0
    if memory.recurring is not None and observation.unix_s is not None:  # until one that starts later could serve
        ahead_s = observation.cold_start_s + scaling.interval_s
        learnt = recurring_load.floor(memory.recurring, scaling.recurring_load, observation.unix_s, ahead_s)
        learnt = min(learnt, limits.max_workers)
    return (floor, reason) if learnt <= floor else (learnt, f"at this time, {learnt} were needed before")


def _learn(memory: PolicyMemory, observation: Observation, scaling: Scaling) -> PolicyMemory:
    """Update what is known of the load that recurs; without `learn`, forget it."""
    if not scaling.recurring_load.learn:
        return replace(memory, recurring=None)
    if observation.queue is None or observation.unix_s is None:
        return memory
    recurring = memory.recurring or RecurringMemory()
    return replace(memory, recurring=recurring_load.update(recurring, observation.queue, scaling, observation.unix_s))


def _within_bounds(
    invalid: Decision, observation: Observation, limits: WorkerLimits, floor: int, floor_reason: str
) -> Decision:
    """Return the decision in place of an invalid one, which is kept within the bounds."""
    if observation.provisioned < floor:
        return Decision(floor, floor_reason)
    if observation.provisioned > limits.max_workers:
        return Decision(limits.max_workers, f"max_workers is {limits.max_workers}")
    return invalid


def _from_zero(decision: Decision, observation: Observation, scaling: Scaling, now: float) -> Decision:
    """Return the decision for a model without workers: `activation`, or what the backlog needs."""
    backlog = workers_for_backlog(observation, scaling, now)
    first = max(scaling.scale_to_zero.activation, backlog)
    if decision.valid and decision.desired > first:
        return decision
    return replace(decision, desired=first, reason=f"requests wait and there is no worker: start {first}", valid=True)
