"""Thresholds on the queue: the way of the Lightning autoscaler, which compared pending requests with workers.

    load = (queued + running tasks) / (live + starting workers)

One worker more when the load has been at least `scale_up_at` for `scale_up_hold_s`; one fewer when it has been below
`scale_down_at` for `scale_down_hold_s`. A starting worker counts once, as the capacity that it will be. Each direction
has its own hold and cooldown. A removal that would lift the load of the rest to `scale_up_at` is not made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from configs.scaling import Scaling
from controller.types import Decision, Observation, Queue, WorkerLimits

#: A full batch where none has been measured yet: what the original posts had.
_USUAL_BATCH = 12.0


class Thresholds(NamedTuple):
    """Load per worker at which one is added, and below which one is removed."""

    up: float
    down: float


def thresholds(scaling: Scaling, batch_cap: int | None) -> Thresholds:
    """The configured ones; `auto` adds a worker when each has a full batch, and removes one at a quarter of that."""
    up = float(batch_cap or _USUAL_BATCH) if scaling.scale_up_at == "auto" else scaling.scale_up_at
    down = up / 4 if scaling.scale_down_at == "auto" else scaling.scale_down_at
    return Thresholds(up, min(down, up / 2) if scaling.scale_up_at == "auto" else down)


@dataclass(frozen=True, slots=True)
class QueueDepthMemory:
    """What the policy remembers, in times on the controller's clock; None where it is not so."""

    high_since: float | None = None
    low_since: float | None = None
    last_up: float | None = None
    last_change: float | None = None

    def shifted(self, seconds: float) -> QueueDepthMemory:
        """The same with every time so much later. What was high or low before a silence may not be so after it."""
        last_up = None if self.last_up is None else self.last_up + seconds
        return QueueDepthMemory(None, None, last_up, None if self.last_change is None else self.last_change + seconds)


def decide(
    observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: QueueDepthMemory | None, now: float
) -> tuple[Decision, QueueDepthMemory]:
    """The number of workers wanted. Without data there is no decision, only the floor."""
    memory = memory or QueueDepthMemory()
    have = observation.provisioned
    # What was high or low before a silence, or with another number of workers, may not be so after it.
    unheld = replace(memory, high_since=None, low_since=None)
    if have < limits.min_workers:
        return Decision(limits.min_workers, f"min_workers is {limits.min_workers}"), unheld
    if have > limits.max_workers:
        return Decision(limits.max_workers, f"max_workers is {limits.max_workers}"), unheld
    if observation.queue is None:
        return Decision(have, "no data", valid=False), unheld
    load = _load(observation.queue, have)
    at = thresholds(scaling, observation.queue.batch_cap)
    memory = _track(memory, load, at, now)
    why = _explain(observation.queue, have, load)
    if memory.high_since is not None:
        return _up(have, f"{why} has been >= {at.up:g}", scaling, limits, memory, now)
    if memory.low_since is not None:
        rest = _load(observation.queue, have - 1)
        if rest >= at.up:
            return Decision(have, f"{why} is low, but one worker fewer would have a load of {rest:.1f}"), memory
        return _down(have, f"{why} has been < {at.down:g}", scaling, limits, memory, now)
    return Decision(have, f"{why} is between {at.down:g} and {at.up:g}"), memory


def _track(memory: QueueDepthMemory, load: float, at: Thresholds, now: float) -> QueueDepthMemory:
    """Since when the load has been past either threshold."""
    high, low = load >= at.up, load < at.down
    return replace(
        memory,
        high_since=(now if memory.high_since is None else memory.high_since) if high else None,
        low_since=(now if memory.low_since is None else memory.low_since) if low else None,
    )


def _up(
    have: int, at: str, scaling: Scaling, limits: WorkerLimits, memory: QueueDepthMemory, now: float
) -> tuple[Decision, QueueDepthMemory]:
    assert memory.high_since is not None
    held = now - memory.high_since
    if have >= limits.max_workers:
        return Decision(have, f"{at}, but max_workers is {limits.max_workers}"), memory
    if held < scaling.scale_up_hold_s:
        return Decision(have, f"{at} for {held:.0f} of {scaling.scale_up_hold_s:g} s"), memory
    if memory.last_up is not None and now - memory.last_up < scaling.scale_up_cooldown_s:
        return Decision(have, f"{at}, but the last addition is {now - memory.last_up:.0f} s ago"), memory
    return Decision(have + 1, f"{at} for {held:.0f} s"), replace(
        memory, last_up=now, last_change=now, high_since=None, low_since=None
    )


def _down(
    have: int, at: str, scaling: Scaling, limits: WorkerLimits, memory: QueueDepthMemory, now: float
) -> tuple[Decision, QueueDepthMemory]:
    assert memory.low_since is not None
    held = now - memory.low_since
    if have <= limits.min_workers:
        return Decision(have, f"{at}, but min_workers is {limits.min_workers}"), memory
    if held < scaling.scale_down_hold_s:
        return Decision(have, f"{at} for {held:.0f} of {scaling.scale_down_hold_s:g} s"), memory
    if memory.last_change is not None and now - memory.last_change < scaling.scale_down_cooldown_s:
        return Decision(have, f"{at}, but the last change is {now - memory.last_change:.0f} s ago"), memory
    # The hold starts again, so that the next removal needs a stretch of its own.
    return Decision(have - 1, f"{at} for {held:.0f} s"), replace(memory, last_change=now, low_since=None)


def _load(queue: Queue, workers: int) -> float:
    return (queue.queued + queue.running) / workers if workers else 0.0


def _explain(queue: Queue, have: int, load: float) -> str:
    workers = "1 worker" if have == 1 else f"{have} workers"
    return f"load {load:.1f} ({queue.queued} queued + {queue.running} running / {workers})"
