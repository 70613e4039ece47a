"""The plan: starts and drains that lead from the actual workers to the desired ones. Pure.

It is computed again from the whole observation each time, so a plan that was not executed is harmless.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from configs.scaling import Scaling
from controller.planning.allocation import Claimant, Swap, find_move, find_swap, waiting_saved
from controller.planning.placement import DeviceSlots, PlacementRequest, in_gib
from controller.planning.scale_down import select_to_stop
from controller.types import (
    Action,
    CrashBackoff,
    Decision,
    Device,
    Drain,
    Observation,
    Start,
    WorkerLimits,
)


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """One model's part of the plan."""

    observation: Observation
    decision: Decision
    limits: WorkerLimits
    crashes: CrashBackoff
    #: Devices that its workers may use; a device that is listed twice may have two.
    slots: Sequence[str]
    #: Bytes of a device that one worker needs; None: all of its memory.
    need: int | None = None
    #: Whether memory alone bounds how many of its workers share a device.
    share: bool = False
    #: Settings of the model's load; None where it does not matter.
    scaling: Scaling | None = None
    #: Reason by outdated worker, and how many workers above the decision a replacement may use.
    outdated: Mapping[str, str] = field(default_factory=dict)
    surge: int = 0
    #: Sets of machines for its next workers, the best first; see `PlacementRequest.preferred`.
    preferred: tuple[frozenset[str], ...] = ()


class Blocked(NamedTuple):
    """The reason why a model has fewer workers than decided."""

    #: Equal for reasons that differ only in numbers and names.
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The actions to execute, and the models whose start is blocked."""

    actions: Sequence[Action]
    blocked: Mapping[str, Blocked]
    #: The drains that make room for another model.
    swaps: Sequence[Swap] = ()
    #: Where one more worker of each model would start, as far as there is room. Only for devices of several machines.
    next_devices: Mapping[str, str] = field(default_factory=dict)
    #: The devices with counted memory and the faulty ones, as they were planned.
    devices: Mapping[str, Device] = field(default_factory=dict)


def make_plan(demands: Sequence[ModelDemand], now: float, devices: Mapping[str, Device] | None = None) -> Plan:
    """Kill stuck workers, drain surplus ones, and start missing ones where there is room.

    `devices` lists the devices with counted memory and the faulty ones. Models below `min_workers` come first. During
    a crash back-off the planner reserves the model's device, so a busy model never takes the device of another's only
    worker. Then the planner gives each free device to the model whose next worker saves the most waiting. A model
    below its share can displace workers of models above theirs (see `find_swap`).
    """
    draft = _PlanBuilder(demands, now, devices or {})
    draft.stop_workers()
    draft.allocate()
    if any(demand.surge for demand in demands):
        draft.replace_outdated()
    next_devices = draft.next_devices() if any(demand.preferred for demand in demands) else {}
    return Plan(draft.actions, draft.blocked(), draft.swaps, next_devices, devices or {})


class _PlanBuilder:
    def __init__(self, demands: Sequence[ModelDemand], now: float, devices: Mapping[str, Device]) -> None:
        self._now = now
        self._devices = devices
        self.actions: list[Action] = []
        self.swaps: list[Swap] = []
        #: Models with the same devices share one count of them.
        slots = [tuple(demand.slots) for demand in demands]
        places = {each: Counter(each) for each in set(slots)}
        self._models: list[tuple[ModelDemand, Claimant]] = []
        for demand, own in zip(demands, slots, strict=True):
            name, minimum = demand.observation.model, demand.limits.min_workers
            request = PlacementRequest(name, demand.need, places[own], demand.share, demand.preferred)
            self._models.append((demand, Claimant(request, demand.observation, minimum, demand.scaling)))
        #: Models with fewer workers than desired: a heap by priority.
        self._waiting: list[tuple[int, float, float, int]] = []
        #: For each model that waits for a device: the workers that must leave it first.
        self._pending: dict[str, str] = {}

    def stop_workers(self) -> None:
        """Select the workers to stop."""
        for demand, claimant in self._models:
            leaving, claimant.staying = select_to_stop(
                demand.observation, demand.decision, demand.limits, self._now, demand.outdated, demand.surge
            )
            self.actions += leaving
            claimant.count = len(claimant.staying)

    @functools.cached_property
    def _slots(self) -> DeviceSlots:
        """The devices in use, counted when the first worker needs one, so not while nothing changes."""
        below_minimum = [request for request, missing in self._below_minimum() for _ in range(missing)]
        if self._devices and below_minimum:
            spread = _fitting(self._count(tight=False), below_minimum)
            if spread < len(below_minimum) and _fitting(self._count(tight=True), below_minimum) > spread:
                return self._count(tight=True)
        return self._count(tight=False)

    def _count(self, *, tight: bool) -> DeviceSlots:
        """Return the device slots with all present workers."""
        slots = DeviceSlots(self._devices, tight=tight)
        for demand, claimant in self._models:
            staying = {replica.process.id for replica in claimant.staying}
            for replica in demand.observation.replicas:
                slots.hold(replica.process.device, claimant.request)
                if replica.process.id not in staying:
                    slots.release_later(replica.process.device, claimant.request, replica.process.id)
        return slots

    def _below_minimum(self) -> list[tuple[PlacementRequest, int]]:
        """Return the models below their minimum with the number of missing workers, the largest first."""
        below_minimum = [
            (claimant.request, claimant.min_workers - claimant.count)
            for _, claimant in self._models
            if claimant.count < claimant.min_workers
        ]
        return sorted(below_minimum, key=lambda entry: -_size(entry[0]))

    def allocate(self) -> None:
        """Allocate devices to models that miss workers, the most urgent first."""
        for number, (demand, claimant) in enumerate(self._models):
            if claimant.count < demand.decision.desired:
                self._enqueue(number)
        while self._waiting:
            number = heapq.heappop(self._waiting)[-1]
            demand, claimant = self._models[number]
            # A model that gives up a worker while it waits is in the heap twice.
            if claimant.count < demand.decision.desired and self._allocate(number):
                claimant.count += 1
                if claimant.count < demand.decision.desired:
                    self._enqueue(number)

    def _enqueue(self, number: int) -> None:
        """Let the model, which has fewer workers than desired, wait for a device.

        The order is by rank. Models below their minimum go by size, the others by saved waiting and missing share.
        """
        demand, claimant = self._models[number]
        rank = claimant.rank()
        gain = _size(claimant.request) if rank == 0 else waiting_saved(claimant.load, claimant.count + 1)
        share = (claimant.count + 1) / demand.decision.desired
        heapq.heappush(self._waiting, (rank, -gain, share, number))

    def _allocate(self, number: int) -> bool:
        """Find a device for one more worker: now, after another worker has left, or by a swap."""
        demand, claimant = self._models[number]
        may_start = self._now >= demand.crashes.retry_at
        if not may_start and claimant.rank() > 0:
            return False
        if device := self._slots.take(claimant.request):
            if may_start:
                self.actions.append(Start(demand.observation.model, device, demand.decision.reason))
            return True
        if not may_start:
            return False
        device = self._slots.reserve_pending(claimant.request)
        if device is None and self._swap(claimant):
            device = self._slots.reserve_pending(claimant.request)
        if device is None and claimant.rank() < 2 and (device := self._slots.take_partial(claimant.request)):
            # Co-locate even if memory may be short: the real need has not been measured yet.
            self.actions.append(Start(demand.observation.model, device, demand.decision.reason))
            return True
        if device is not None:
            self._pending[demand.observation.model] = f"{' and '.join(self._slots.leaving[device])} to leave {device}"
        return device is not None

    def _swap(self, taker: Claimant) -> bool:
        """Drain workers of other models, if that is due or saves enough waiting."""
        claimants = [claimant for _, claimant in self._models]
        swaps = find_swap(taker, claimants, self._slots, self._now)
        if not swaps and taker.rank() == 0:
            swaps = find_move(taker, claimants, self._slots)
        for swap in swaps:
            number = next(n for n, claimant in enumerate(claimants) if claimant.request.model == swap.giver)
            giver = claimants[number]
            giver.staying = [replica for replica in giver.staying if replica.process.id != swap.worker]
            giver.count -= 1
            self._slots.release_later(swap.device, giver.request, swap.worker)
            self.actions.append(Drain(swap.worker, swap.reason))
            if giver.count < self._models[number][0].decision.desired:
                self._enqueue(number)  # another device may have room for it: it starts there in the same plan
        self.swaps += swaps
        return bool(swaps)

    def replace_outdated(self) -> None:
        """Start the replacement of an outdated worker; without room for both, the outdated one is drained first."""
        started = {action.model for action in self.actions if isinstance(action, Start)}
        for demand, claimant in self._models:
            staying = {replica.process.id for replica in claimant.staying}
            outdated_id = next((name for name in demand.outdated if name in staying), None)
            under_way = len(staying) > demand.decision.desired or len(staying) < len(demand.observation.replicas)
            if demand.surge == 0 or outdated_id is None or under_way or demand.observation.model in started:
                continue
            reason = demand.outdated[outdated_id]
            if device := self._slots.take(claimant.request):
                self.actions.append(Start(demand.observation.model, device, f"it replaces {outdated_id}: {reason}"))
            else:
                self.actions.append(
                    Drain(outdated_id, f"{reason}; no device is free, so it stops before its replacement starts")
                )

    def next_devices(self) -> dict[str, str]:
        """Return where one more worker of each model would start, if it may run on several machines."""
        found = {}
        for demand, claimant in self._models:
            if demand.preferred and (device := self._slots.find(claimant.request)):
                found[demand.observation.model] = device
        return found

    def blocked(self) -> dict[str, Blocked]:
        """Return why models have fewer workers than decided, or get them later."""
        started = Counter(action.model for action in self.actions if isinstance(action, Start))
        found = {}
        for demand, claimant in self._models:
            model = demand.observation.model
            short = demand.decision.desired - len(claimant.staying) - started[model]
            if short > 0:
                found[model] = self._reason(demand, claimant.request, short)
        return found

    def _reason(self, demand: ModelDemand, request: PlacementRequest, short: int) -> Blocked:
        if self._now < demand.crashes.retry_at:
            crashes = "1 crash" if demand.crashes.count == 1 else f"{demand.crashes.count} crashes in a row"
            return Blocked("crashes", f"{crashes}, next try in {demand.crashes.retry_at - self._now:.0f} s")
        if demand.observation.model in self._pending:
            return Blocked("pending", f"{short} more wanted: waiting for {self._pending[demand.observation.model]}")
        kind, missing = self._missing(request)
        faulty = [device for device in self._devices.values() if device.fault and device.name in request.places]
        unhealthy = [f"{device.name} is not used ({device.fault})" for device in faulty]
        kind = " ".join([kind, *(device.name for device in faulty)])
        return Blocked(kind, "; ".join([f"{short} more wanted, but {missing}", *unhealthy]))

    def _missing(self, request: PlacementRequest) -> Blocked:
        max_free = self._slots.max_free(request)
        if not request.places:
            return Blocked("none", "no machine with a device for it has joined")
        if max_free is None:
            return Blocked("devices", "every device is taken")
        free, device = max_free
        if request.need is None:
            key = f"models.{request.model}.gpu_memory"
            return Blocked("unmeasured", f"its memory is not known yet ({key}), and no GPU is completely free")
        if free >= request.need:
            return Blocked("share", "each GPU with room already has one of its workers (devices.share is false)")
        largest = f"the largest free amount is {in_gib(max(free, 0))} on {device}"
        return Blocked("memory", f"no GPU has {in_gib(request.need)} free: {largest}")


def _fitting(slots: DeviceSlots, requests: Sequence[PlacementRequest]) -> int:
    return sum(slots.take(request) is not None for request in requests)


def _size(request: PlacementRequest) -> float:
    return math.inf if request.need is None else float(request.need)
