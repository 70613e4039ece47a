"""Policy `queue_depth`: thresholds on the load per worker, after the Lightning autoscaler.

    load = (queued + running tasks) / (live + starting workers)

It adds a worker when the load has been at least `scale_up_at` for `scale_up_hold_s`. It removes one when the load has
been below `scale_down_at` for `scale_down_hold_s`. A starting worker counts as capacity. Each direction has its own
hold time and cooldown. A worker stays if its removal would raise the load of the others to `scale_up_at`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from configs.scaling import Scaling
from controller.types import Decision, Observation, Queue, WorkerLimits

#: Assumed batch size before one was measured; the published Lightning autoscaler used it.
_USUAL_BATCH = 12.0


class Thresholds(NamedTuple):
    """The loads per worker at which a worker is added (`up`) and below which one is removed (`down`)."""

    up: float
    down: float


def thresholds(scaling: Scaling, batch_cap: int | None) -> Thresholds:
    """Return the thresholds; `auto` is a full batch per worker for `up`, and a quarter of `up` for `down`."""
    up = float(batch_cap or _USUAL_BATCH) if scaling.scale_up_at == "auto" else scaling.scale_up_at
    down = up / 4 if scaling.scale_down_at == "auto" else scaling.scale_down_at
    return Thresholds(up, min(down, up / 2) if scaling.scale_up_at == "auto" else down)


@dataclass(frozen=True, slots=True)
class QueueDepthMemory:
    """The state of the policy: times on the controller's clock, or None."""

    high_since: float | None = None
    low_since: float | None = None
    last_up: float | None = None
    last_change: float | None = None

    def shifted(self, seconds: float) -> QueueDepthMemory:
        """Return a copy with all times moved by `seconds`. The holds restart, because the load may have changed."""
        last_up = None if self.last_up is None else self.last_up + seconds
        return QueueDepthMemory(None, None, last_up, None if self.last_change is None else self.last_change + seconds)


def decide(
    observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: QueueDepthMemory | None, now: float
) -> tuple[Decision, QueueDepthMemory]:
    """Return the decision and the new state. Without data only the bounds apply."""
    memory = memory or QueueDepthMemory()
    have = observation.provisioned
    # The holds restart after missing data or after a change of the number of workers: the load may have changed.
    unheld = replace(memory, high_since=None, low_since=None)
    if have < limits.min_workers:
        return Decision(limits.min_workers, _minimum_text(scaling, limits)), unheld
    if have > limits.max_workers:
        return Decision(limits.max_workers, f"max_workers is {limits.max_workers}"), unheld
    if observation.queue is None:
        return Decision(have, "no data", valid=False), unheld
    load = _load(observation.queue, have)
    at = thresholds(scaling, observation.queue.batch_cap)
    memory = _track(memory, load, at, now)
    load_text = _explain(observation.queue, have, load)
    if memory.high_since is not None:
        return _up(have, f"{load_text} has been >= {at.up:g}", scaling, limits, memory, now)
    if memory.low_since is not None:
        rest = _load(observation.queue, have - 1)
        if rest >= at.up:
            reason = f"{load_text} is low, but with one worker less it would be {rest:.1f}"
            return Decision(have, reason), memory
        return _down(have, f"{load_text} has been < {at.down:g}", scaling, limits, memory, now)
    return Decision(have, f"{load_text} is between {at.down:g} and {at.up:g}"), memory


def _track(memory: QueueDepthMemory, load: float, at: Thresholds, now: float) -> QueueDepthMemory:
    """Update the times since when the load has been beyond either threshold."""
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
        return Decision(have, f"{at}, but {_minimum_text(scaling, limits)}"), memory
    if held < scaling.scale_down_hold_s:
        return Decision(have, f"{at} for {held:.0f} of {scaling.scale_down_hold_s:g} s"), memory
    if memory.last_change is not None and now - memory.last_change < scaling.scale_down_cooldown_s:
        return Decision(have, f"{at}, but the last change is {now - memory.last_change:.0f} s ago"), memory
    # The hold restarts, so that each removal needs a full hold time.
    return Decision(have - 1, f"{at} for {held:.0f} s"), replace(memory, last_change=now, low_since=None)


def _minimum_text(scaling: Scaling, limits: WorkerLimits) -> str:
    """Return what the minimum is now. A schedule may raise it, and `min_workers` 0 leaves one here."""
    number = limits.min_workers
    return f"min_workers is {number}" if number == scaling.min_workers else f"the minimum now is {number}"


def _load(queue: Queue, workers: int) -> float:
    return (queue.queued + queue.running) / workers if workers else 0.0


def _explain(queue: Queue, have: int, load: float) -> str:
    workers = "1 worker" if have == 1 else f"{have} workers"
    return f"load {load:.1f} ({queue.queued} queued + {queue.running} running / {workers})"
