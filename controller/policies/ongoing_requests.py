"""Requests per worker against a target: the formula of Ray Serve, with its names.

    ratio   = mean of (queued + running tasks) / (target_ongoing_requests * workers)
    desired = ceil(workers * (1 + factor * (ratio - 1)))     factor: upscaling_factor or downscaling_factor

More workers must have been wanted for `upscale_delay_s`, fewer for `downscale_delay_s`. With no workers, the first
request brings `upscaling_factor` of them at once.

Unlike there: a delay is a time and no count of ticks, workers are ready, starting or owed, each counted once, and the
mean begins anew with each change, so that a load which the change has answered is not answered again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from configs.scaling import Scaling
from controller.types import Decision, Observation, WorkerLimits

#: Of a full batch: leaves room for what comes while a worker starts.
_TARGET = 0.7


class Sample(NamedTuple):
    """Tasks that there were at a time."""

    at: float
    tasks: int


@dataclass(frozen=True, slots=True)
class OngoingRequestsMemory:
    """What the policy remembers, in times on the controller's clock; None where it is not so."""

    samples: tuple[Sample, ...] = ()
    more_since: float | None = None
    fewer_since: float | None = None

    def shifted(self, seconds: float) -> OngoingRequestsMemory:
        """Nothing of this outlives a silence: what was wanted before it may not be wanted after it."""
        del seconds
        return OngoingRequestsMemory()


def decide(
    observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: OngoingRequestsMemory | None, now: float
) -> tuple[Decision, OngoingRequestsMemory]:
    """The number of workers wanted. Without data there is no decision."""
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
    why = f"{mean:.1f} tasks on {have} of {target:g} each"
    memory = OngoingRequestsMemory(
        samples,
        (now if memory.more_since is None else memory.more_since) if desired > have else None,
        (now if memory.fewer_since is None else memory.fewer_since) if desired < have else None,
    )
    since = memory.more_since if memory.more_since is not None else memory.fewer_since
    inputs = {"tasks": mean, "target": target, "wanted": desired}
    if since is None:
        return Decision(desired, why, inputs=inputs), memory
    delay_s = scaling.upscale_delay_s if desired > have else scaling.downscale_delay_s
    why = f"{why}: {desired} wanted for {now - since:.0f} of {delay_s:g} s"
    # The bounds hold without delay.
    if now - since < delay_s and limits.min_workers <= have <= limits.max_workers:
        return Decision(have, why, inputs=inputs), memory
    return Decision(desired, why, inputs=inputs), replace(memory, samples=(), more_since=None, fewer_since=None)


def _target(scaling: Scaling, batch_cap: int | None) -> float:
    target = scaling.target_ongoing_requests
    return _TARGET * (batch_cap or 1) if target == "auto" else target


def _mean(samples: tuple[Sample, ...]) -> float:
    return sum(sample.tasks for sample in samples) / len(samples)


def _desired(have: int, ratio: float, scaling: Scaling) -> int:
    factor = scaling.upscaling_factor if ratio >= 1 else scaling.downscaling_factor
    desired = math.ceil(round(have * (1 + factor * (ratio - 1)), 9))
    # With a small factor the last one would never go.
    stuck = desired == have and math.ceil(round(have * ratio, 9)) < have
    return desired - 1 if stuck else desired


def _clip(number: int, limits: WorkerLimits) -> int:
    return min(max(number, limits.min_workers), limits.max_workers)
