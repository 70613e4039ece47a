"""Policy `ongoing_requests`: a target of requests per worker, with the formula and the names of Ray Serve.

    ratio   = mean of (queued + running tasks) / (target_ongoing_requests * workers)
    desired = ceil(workers * (1 + factor * (ratio - 1)))     factor: upscaling_factor or downscaling_factor

A scale-up must have been wanted for `upscale_delay_s`, a scale-down for `downscale_delay_s`. Without workers, the first
request starts `upscaling_factor` workers at once.

There are three differences from Ray Serve. A delay is a time, not a number of ticks. Ready, starting and replacement
workers count once each. The mean restarts after each change, so that the same load does not cause a second change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from configs.scaling import Scaling
from controller.types import Decision, Observation, WorkerLimits

#: Default target as a fraction of a full batch. The rest is a reserve for arrivals while a worker starts.
_TARGET = 0.7


class Sample(NamedTuple):
    """The number of queued and running tasks at one time."""

    at: float
    tasks: int


@dataclass(frozen=True, slots=True)
class OngoingRequestsMemory:
    """The state of the policy: times on the controller's clock, or None."""

    samples: tuple[Sample, ...] = ()
    more_since: float | None = None
    fewer_since: float | None = None

    def shifted(self, seconds: float) -> OngoingRequestsMemory:
        """Return an empty state: old samples say nothing about the load after a restart."""
        del seconds
        return OngoingRequestsMemory()


def decide(
    observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: OngoingRequestsMemory | None, now: float
) -> tuple[Decision, OngoingRequestsMemory]:
    """Return the decision and the new state. Without data the decision is not valid."""
    have, queue = observation.provisioned, observation.queue
    if queue is None:
        return Decision(have, "no data", valid=False), OngoingRequestsMemory()
    memory = memory or OngoingRequestsMemory()
    tasks = queue.queued + queue.running
    samples = (*(s for s in memory.samples if s.at > now - scaling.look_back_period_s), Sample(now, tasks))
    mean, target = _mean(samples), _target(scaling, queue.batch_cap)
    if have == 0:
        first = math.ceil(scaling.upscaling_factor) if tasks else 0
        return Decision(_clip(first, limits), f"{tasks} tasks and no worker"), OngoingRequestsMemory(samples)
    desired = _clip(_desired(have, mean / target / have, scaling), limits)
    workers = "1 worker" if have == 1 else f"{have} workers"
    reason = f"{mean:.1f} tasks on {workers}, target {target:g} each"
    memory = OngoingRequestsMemory(
        samples,
        (now if memory.more_since is None else memory.more_since) if desired > have else None,
        (now if memory.fewer_since is None else memory.fewer_since) if desired < have else None,
    )
    since = memory.more_since if memory.more_since is not None else memory.fewer_since
    inputs = {"tasks": mean, "target": target, "wanted": desired}
    if since is None:
        return Decision(desired, reason, inputs=inputs), memory
    delay_s = scaling.upscale_delay_s if desired > have else scaling.downscale_delay_s
    reason = f"{reason}: {desired} wanted for {now - since:.0f} of {delay_s:g} s"
    # The bounds apply without delay.
    if now - since < delay_s and limits.min_workers <= have <= limits.max_workers:
        return Decision(have, reason, inputs=inputs), memory
    return Decision(desired, reason, inputs=inputs), replace(memory, samples=(), more_since=None, fewer_since=None)


def _target(scaling: Scaling, batch_cap: int | None) -> float:
    target = scaling.target_ongoing_requests
    return _TARGET * (batch_cap or 1) if target == "auto" else target


def _mean(samples: tuple[Sample, ...]) -> float:
    return sum(sample.tasks for sample in samples) / len(samples)


def _desired(have: int, ratio: float, scaling: Scaling) -> int:
    factor = scaling.upscaling_factor if ratio >= 1 else scaling.downscaling_factor
    desired = math.ceil(round(have * (1 + factor * (ratio - 1)), 9))
    # With a small factor, rounding up would keep one surplus worker forever.
    stuck = desired == have and math.ceil(round(have * ratio, 9)) < have
    return desired - 1 if stuck else desired


def _clip(number: int, limits: WorkerLimits) -> int:
    return min(max(number, limits.min_workers), limits.max_workers)
