"""Placement of workers on devices: counts the free memory and slots. Pure.

A device with counted memory takes workers while their needs fit. The model's slots limit its workers on the device. A
device without counted memory takes one worker per slot, of any model. A draining worker uses its room until it exits,
but the planner can already reserve that room for the next worker.

Of two empty devices, the one of a better machine is used: where a standby worker waits, or where the weights are at
hand. While all workers of a model are on one machine, its next one goes to another machine, if that needs no better
machine and no larger device.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.devices import machine_of
from controller.types import Device

_Key = tuple[float, float, float, float, int, str]
#: Devices up to this factor larger count as equally large when workers are spread over machines.
_SAME_SIZE = 1.1
#: An empty device: its memory, its number and its name.
_Empty = tuple[float, int, str]


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """A worker's required device memory, and the devices that it may use."""

    model: str
    #: Bytes; None for all of the device's memory.
    need: int | None
    #: Workers allowed on each device: of this model, or of all models where memory is not counted.
    places: Mapping[str, int]
    #: Whether only memory bounds the number of the model's workers on one device.
    share: bool = False
    #: Sets of machines, the best first; a machine that is in none comes last.
    preferred: tuple[frozenset[str], ...] = ()

    def tier(self, device: str) -> int:
        """Return the number of the first set with the device's machine: lower is better."""
        if not self.preferred:
            return 0
        machine = machine_of(device)
        return next((tier for tier, some in enumerate(self.preferred) if machine in some), len(self.preferred))


def in_gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


class DeviceSlots:
    """The free room of every device: now, and after the draining workers have left."""

    def __init__(self, devices: Mapping[str, Device], *, tight: bool = False) -> None:
        """`tight`: use the fullest device with room, which fits the most workers in; else the emptiest."""
        self._tight = tight
        self._memory = {name: device.memory for name, device in devices.items() if device.memory is not None}
        self._faulty = {name for name, device in devices.items() if device.fault}
        self._exclusive = {name for name, device in devices.items() if device.exclusive}
        #: Used bytes, or workers where memory is not counted: now, and later.
        self._used_now: defaultdict[str, int] = defaultdict(int)
        self._used_later: defaultdict[str, int] = defaultdict(int)
        #: The greater of both.
        self._used: dict[str, int] = {}
        self._workers: Counter[str] = Counter()
        self._model_now: Counter[tuple[str, str]] = Counter()
        self._model_later: Counter[tuple[str, str]] = Counter()
        #: By model: its workers on each machine that stay.
        self._by_machine: defaultdict[str, Counter[str]] = defaultdict(Counter)
        #: The workers that will leave each device.
        self.leaving: dict[str, list[str]] = {}
        #: The devices of each model, the best first.
        self._order: dict[str, list[_Key]] = {}
        #: By set of devices: the empty ones of each tier, those with room, and whether they are of several machines.
        self._empty: dict[tuple[int, tuple[frozenset[str], ...]], list[list[_Empty]]] = {}
        self._available: dict[int, list[tuple[int, str]]] = {}
        self._several: dict[int, bool] = {}

    def __repr__(self) -> str:
        return f"DeviceSlots({dict(self._used_now)}, later {dict(self._used_later)})"

    def hold(self, device: str, request: PlacementRequest) -> None:
        """Count a worker that is present or starts now."""
        self.retain(device, request)
        self._used_now[device] += self._amount(device, request)
        self._used[device] = max(self._used_now[device], self._used_later[device])
        self._model_now[device, request.model] += 1

    def retain(self, device: str, request: PlacementRequest) -> None:
        """Keep the room for a worker that starts later."""
        self._used_later[device] += self._amount(device, request)
        self._used[device] = max(self._used_now[device], self._used_later[device])
        self._model_later[device, request.model] += 1
        self._by_machine[request.model][machine_of(device)] += 1
        self._workers[device] += 1

    def release_later(self, device: str, request: PlacementRequest, worker: str) -> None:
        """Count a worker that will leave."""
        self._used_later[device] -= self._amount(device, request)
        self._used[device] = max(self._used_now[device], self._used_later[device])
        self._model_later[device, request.model] -= 1
        self._by_machine[request.model][machine_of(device)] -= 1
        self.leaving.setdefault(device, []).append(worker)

    def take(self, request: PlacementRequest, but: str = "") -> str | None:
        """Take free room on the device with the fewest workers, but not on `but`. Return the device, or None."""
        device = self.find(request, but)
        if device is not None:
            self.hold(device, request)
        return device

    def take_partial(self, request: PlacementRequest) -> str | None:
        """Take all free memory of the emptiest device, for a worker of unknown need; None if nothing is free."""
        limit = self.max_free(request)
        if request.need is not None or limit is None or limit[0] <= 0:
            return None
        self.hold(limit[1], request)
        return limit[1]

    def reserve_pending(self, request: PlacementRequest) -> str | None:
        """Reserve room that a draining worker will free; return the device, or None."""
        candidates = [device for device in self.leaving if self.will_fit(device, request)]
        if not candidates:
            return None
        device = min(
            candidates,
            key=lambda device: (self._workers[device], request.tier(device), self._free(device, request)),
        )
        self.retain(device, request)
        return device

    def will_fit(self, device: str, request: PlacementRequest, instead_of: Sequence[PlacementRequest] = ()) -> bool:
        """Return whether it fits after the draining workers and these have left."""
        freed = sum(self._amount(device, other) for other in instead_of)
        own = self._model_later[device, request.model]
        return self._fits(device, request, self._used_later[device] - freed, own)

    def max_free(self, request: PlacementRequest) -> tuple[int, str] | None:
        """Return the largest free memory on a healthy device of the model, and the device; None if not counted."""
        counted = [
            (memory - self._used.get(device, 0), device)
            for _, device in self._candidates(request)
            if (memory := self._memory.get(device)) is not None
        ]
        if counted:
            return max(counted, key=lambda pair: pair[0])
        full = (device for device in request.places if device in self._memory and device not in self._faulty)
        return next(((0, device) for device in full), None)

    def find(self, request: PlacementRequest, but: str = "") -> str | None:
        """Return the device that `take` would take, or None."""
        if not self._tight and (empty := self._empty_one(request, but)):
            return empty
        if request.model not in self._order:
            # Within a plan room is only taken, so a full device stays full.
            order = self._keys(request)
            heapq.heapify(order)
            self._order[request.model] = order
        order, own = self._order[request.model], self._by_machine[request.model]
        is_several = self._has_several(request)
        while order:
            first = order[0]
            tier, index, device = first[1], first[4], first[5]
            if device == but or not self._has_room(device, request):
                heapq.heappop(order)
                continue
            is_crowded = is_several and own[machine_of(device)] > 0
            key = self._key(tier, is_crowded, index, device, request)
            if key == first:
                return device
            heapq.heapreplace(order, key)
        return None

    def _empty_one(self, request: PlacementRequest, but: str) -> str | None:
        """Return the smallest empty device that fits, of the best machines with one."""
        crowded = self._only_machine(request)
        for sizes in self._empty_by_tier(request):
            if device := self._smallest(sizes, request, but, crowded):
                return device
        return None

    def _empty_by_tier(self, request: PlacementRequest) -> list[list[_Empty]]:
        """Return the empty devices, by size. Models with the same devices and preferred machines share the lists."""
        key = id(request.places), request.preferred
        tiers = self._empty.get(key)
        if tiers is None:
            self._empty[key] = tiers = [[] for _ in range(len(request.preferred) + 1)]
            for index, device in enumerate(request.places):
                if not self._workers[device] and device not in self._faulty:
                    memory = self._memory.get(device)
                    size = math.inf if memory is None else float(memory)
                    tiers[request.tier(device)].append((size, index, device))
            for sizes in tiers:
                sizes.sort()
        return tiers

    def _smallest(self, sizes: list[_Empty], request: PlacementRequest, but: str, crowded: str | None) -> str | None:
        """Return the smallest that fits; of equally large ones, the first that is not on the machine `crowded`."""
        at = bisect.bisect_left(sizes, (float(request.need or 0), 0, ""))
        first, limit = None, math.inf
        while at < len(sizes) and (first is None or sizes[at][0] <= limit):
            size, _, device = sizes[at]
            if self._workers[device]:
                del sizes[at]
                continue
            at += 1
            if device == but or not self._has_room(device, request):
                continue
            if crowded is None or machine_of(device) != crowded:
                return device
            if first is None:
                first, limit = device, size * _SAME_SIZE
        return first

    def _only_machine(self, request: PlacementRequest) -> str | None:
        """Return the machine that has all workers of the model; None if there is a choice of one machine only."""
        if not self._has_several(request):
            return None
        machines = [machine for machine, count in self._by_machine[request.model].items() if count > 0]
        return machines[0] if len(machines) == 1 else None

    def _has_several(self, request: PlacementRequest) -> bool:
        """Return whether the model's devices are of several machines."""
        found = self._several.get(id(request.places))
        if found is None:
            found = self._several[id(request.places)] = len(set(map(machine_of, request.places))) > 1
        return found

    def _candidates(self, request: PlacementRequest) -> list[tuple[int, str]]:
        """Return the devices that are not full, with their numbers; a full one stays full within a plan."""
        found = self._available.get(id(request.places))
        if found is None:
            found = [
                (index, device)
                for index, device in enumerate(request.places)
                if device not in self._faulty and self._free(device, request) > 0
            ]
            self._available[id(request.places)] = found
        return found

    def _keys(self, request: PlacementRequest) -> list[_Key]:
        """Return the key of every device that is not full."""
        own, is_several = self._by_machine[request.model], self._has_several(request)
        return [
            self._key(request.tier(device), is_several and own[machine_of(device)] > 0, index, device, request)
            for index, device in self._candidates(request)
        ]

    def _key(self, tier: float, is_crowded: bool, index: int, device: str, request: PlacementRequest) -> _Key:
        """Of two devices with equally many workers, prefer the better machine, then the least memory left over.

        `is_crowded`: the model has a worker on the machine.
        """
        memory = self._memory.get(device)
        free = (request.places[device] if memory is None else memory) - self._used.get(device, 0)
        if self._tight:
            return free, tier, is_crowded, 0.0, index, device
        return self._workers[device], tier, is_crowded, free, index, device

    def _free(self, device: str, request: PlacementRequest) -> float:
        memory = self._memory.get(device)
        return float((request.places[device] if memory is None else memory) - self._used.get(device, 0))

    def _has_room(self, device: str, request: PlacementRequest) -> bool:
        own = (device, request.model)
        alike = max(self._model_now.get(own, 0), self._model_later.get(own, 0))
        return self._fits(device, request, self._used.get(device, 0), alike)

    def _fits(self, device: str, request: PlacementRequest, taken: int, own: int) -> bool:
        if device in self._faulty or device not in request.places:
            return False
        memory = self._memory.get(device)
        if memory is None:
            return taken < request.places[device]
        limit = math.inf if request.share else request.places[device]
        return taken + self._amount(device, request) <= memory and own < limit

    def _amount(self, device: str, request: PlacementRequest) -> int:
        memory = self._memory.get(device)
        if memory is None:
            return 1
        if request.need is None or (device in self._exclusive and request.need <= memory):
            return max(memory, 1)
        return request.need
