"""Allocates scarce devices to the models whose next worker saves the most waiting. Pure.

The scale is the same for all policies: the mean number of waiting tasks over the next minutes, each weighted by the
inverse of its allowed wait. The unfinished work of a model is a Brownian motion with drift. At time t it is

    x(t) = backlog + (arriving work - workers * power) * t,    with a variance of 2 * rate * mean_work^2 * t

and the waiting work is the mean of max(0, x(t)). This is convex in the number of workers, so each further worker saves
less than the one before.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from configs.scaling import Scaling
from controller.planning.placement import DeviceSlots, PlacementRequest
from controller.types import Observation, Queue, Replica, Stage

#: The horizon of the waiting estimate, in seconds.
HORIZON_S = 120.0
#: Ratio of saved waiting to lost waiting that a swap must reach.
_MIN_GAIN_RATIO = 1.5
#: Minimum saved waiting for a swap, in tasks.
_MIN_GAIN = 0.05
#: Minimum age of a worker before a swap can drain it, in cold starts of the new worker. It is one cold start if the
#: other model has work and no worker.
_MIN_STAY = 3.0
#: Sample points of the horizon, as fractions of it.
_POINTS = (0.125, 0.375, 0.625, 0.875)
_STANDARD_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Load:
    """A model's load, in seconds of work of one worker that runs one task at a time."""

    backlog_s: float
    #: Arrivals per second, and the work of each.
    rate: float
    mean_work_s: float
    #: Seconds of work per second of one worker with full batches.
    power: float
    #: The allowed wait of a task.
    patience_s: float


def load_of(queue: Queue | None, scaling: Scaling) -> Load | None:
    """Return the model's load; None if unknown. Tasks of unknown size count as long as their allowed wait."""
    if queue is None:
        return None
    patience_s = scaling.slo.max_wait_s
    mean = queue.mean_work_s or patience_s
    work = (queue.queued + queue.running) * mean if queue.divisible_work_s is None else queue.divisible_work_s
    return Load(work, queue.recent_rate(scaling.look_back_period_s), mean, queue.worker_speed, patience_s)


def expected_waiting(load: Load, workers: int, ahead_s: float = HORIZON_S) -> float:
    """Return the mean number of waiting tasks over the horizon, each weighted by its allowed wait."""
    growth = load.rate * load.mean_work_s - workers * load.power
    spread = load.mean_work_s * math.sqrt(2 * load.rate)
    total = 0.0
    for point in _POINTS:
        at = point * ahead_s
        total += _mean_above_zero(load.backlog_s + growth * at, spread * math.sqrt(at))
    return total / (len(_POINTS) * load.mean_work_s * load.patience_s)


def _mean_above_zero(mean: float, deviation: float) -> float:
    """Return the mean of max(0, x) for a normal x."""
    if deviation <= 0:
        return max(mean, 0.0)
    z = mean / deviation
    return mean * _STANDARD_NORMAL.cdf(z) + deviation * _STANDARD_NORMAL.pdf(z)


@functools.lru_cache(maxsize=8192)
def waiting_saved(load: Load | None, workers: int, ahead_s: float = HORIZON_S) -> float:
    """Return the waiting that the last of these workers saves."""
    if load is None or workers < 1:
        return 0.0
    return max(expected_waiting(load, workers - 1, ahead_s) - expected_waiting(load, workers, ahead_s), 0.0)


@dataclass
class Claimant:
    """A model with its workers, as a claimant for devices."""

    request: PlacementRequest
    observation: Observation
    min_workers: int
    #: Settings of its load; None where it does not matter.
    scaling: Scaling | None
    #: The workers that stay, the least useful first.
    staying: list[Replica] = field(default_factory=list)
    #: Workers that it has, or that this plan gives it.
    count: int = 0

    @functools.cached_property
    def load(self) -> Load | None:
        """The model's load; None if unknown."""
        return load_of(self.observation.queue, self.scaling) if self.scaling is not None else None

    @functools.cached_property
    def busy(self) -> bool | None:
        """Whether it has tasks; None if unknown."""
        queue = self.observation.queue
        if queue is None:
            return None
        return queue.queued + queue.running > 0 or any(replica.load for replica in self.observation.replicas)

    def rank(self) -> int:
        """Return the rank of its next worker: 0 below the minimum, 1 the first worker for waiting work, 2 others."""
        if self.count < self.min_workers:
            return 0
        return 1 if self.count == 0 and self.busy else 2

    def surplus(self) -> int:
        """Return the workers above the minimum; never the only one while there is work."""
        return max(len(self.staying) - max(self.min_workers, 0 if self.busy is False else 1), 0)

    def can_lose(self, some: Sequence[Replica]) -> bool:
        """Return whether a serving worker is left, if there is work."""
        ready = [replica for replica in self.staying if replica.stage is Stage.READY]
        return self.busy is False or not ready or any(replica not in some for replica in ready)


@dataclass(frozen=True, slots=True)
class Swap:
    """A worker that is drained to make room for one of another model."""

    taker: str
    giver: str
    worker: str
    device: str
    reason: str


_Candidate = tuple[float, Claimant, Replica]


def find_swap(taker: Claimant, others: Iterable[Claimant], slots: DeviceSlots, now: float) -> list[Swap]:
    """Return the workers of one device to drain for the taker's next worker: those whose loss costs the least.

    The result is empty if no worker can be drained, or if the swap would save too little waiting.
    """
    cold_start_s, rank = taker.observation.cold_start_s, taker.rank()
    ahead_s = max(HORIZON_S, 4 * cold_start_s)
    gain = waiting_saved(taker.load, taker.count + 1, ahead_s) * (1 - cold_start_s / ahead_s)
    max_loss = math.inf if rank < 2 else (gain / _MIN_GAIN_RATIO if gain >= _MIN_GAIN else 0.0)
    stays_s = cold_start_s * (0.0, 1.0, _MIN_STAY)[rank]
    by_device: defaultdict[str, list[_Candidate]] = defaultdict(list)
    for other in others:
        if other is taker or not other.surplus() or (other.busy is None and rank > 0):
            continue
        # This is a lower bound: each further worker that the model loses costs more.
        loss = waiting_saved(other.load, len(other.staying), ahead_s)
        if loss < max_loss:
            for replica in other.staying:
                if now - (replica.process.ready_at or replica.process.started_at) >= stays_s:
                    by_device[replica.process.device].append((loss, other, replica))
    min_loss, victims = math.inf, list[tuple[Claimant, Replica]]()
    # A device costs at least the loss of its least useful worker.
    bounds = {
        device: min((loss, replica.load) for loss, _, replica in candidates) for device, candidates in by_device.items()
    }
    for device in sorted(bounds, key=bounds.__getitem__):
        if bounds[device][0] >= min_loss:
            break
        cost, found = _pick(device, by_device[device], taker, slots, ahead_s)
        if cost < min(min_loss, max_loss):
            min_loss, victims = cost, found
    reason = _swap_reason(taker, rank, gain, min_loss)
    return [Swap(taker.request.model, o.request.model, r.process.id, r.process.device, reason) for o, r in victims]


def find_move(taker: Claimant, others: Sequence[Claimant], slots: DeviceSlots) -> list[Swap]:
    """Return the workers to move to other devices, so that the taker reaches its `min_workers`.

    This defragments the devices when no model has surplus workers. A move drains a worker and starts another one on a
    different device. It never moves the only serving worker of a busy model.
    """
    name, by_device = taker.request.model, _movable([other for other in others if other is not taker], slots)
    for device in taker.request.places:
        candidates = by_device.get(device, {})
        if not slots.will_fit(device, taker.request, [other.request for other, _ in candidates.values()]):
            continue
        attempt, moved = copy.deepcopy(slots), []
        for other, replica in candidates.values():
            if attempt.take(other.request, but=device):
                attempt.release_later(device, other.request, replica.process.id)
                reason = f"swap: moves to another device, because {name} needs this one for its min_workers"
                moved.append(Swap(name, other.request.model, replica.process.id, device, reason))
                if attempt.will_fit(device, taker.request):
                    return moved
    return []


def _movable(models: Sequence[Claimant], slots: DeviceSlots) -> Mapping[str, Mapping[str, tuple[Claimant, Replica]]]:
    """Return by device one worker of each model that could move away, the smallest first."""
    by_device: defaultdict[str, dict[str, tuple[Claimant, Replica]]] = defaultdict(dict)
    for other in sorted(models, key=lambda claimant: claimant.request.need or 0):
        is_needed = len(other.staying) < 2 and other.busy is not False
        # `find` changes the slots. A model for which no device has room cannot move from any.
        if is_needed or copy.deepcopy(slots).find(other.request) is None:
            continue
        for replica in other.staying:
            if other.can_lose([replica]):
                by_device[replica.process.device].setdefault(other.request.model, (other, replica))
    return by_device


def _pick(
    device: str, candidates: Sequence[_Candidate], taker: Claimant, slots: DeviceSlots, ahead_s: float
) -> tuple[float, list[tuple[Claimant, Replica]]]:
    """Return the loss and the workers of the cheapest set on the device that makes enough room.

    The loss is infinite if no set does.
    """
    victims: list[tuple[Claimant, Replica]] = []
    total = 0.0
    for _, other, replica in sorted(candidates, key=lambda entry: entry[0]):
        removed = [victim for claimant, victim in victims if claimant is other]
        if len(removed) < other.surplus() and other.can_lose([*removed, replica]):
            total += waiting_saved(other.load, len(other.staying) - len(removed), ahead_s)
            victims.append((other, replica))
            if slots.will_fit(device, taker.request, [claimant.request for claimant, _ in victims]):
                return total, victims
    return math.inf, []


def _swap_reason(taker: Claimant, rank: int, gain: float, loss: float) -> str:
    name = taker.request.model
    if rank == 0:
        return f"swap: {name} has fewer workers than its min_workers"
    if rank == 1:
        return f"swap: {name} has work and no worker"
    return f"swap: another worker of {name} saves {gain:.2g} waiting tasks, this one saves {loss:.2g}"
