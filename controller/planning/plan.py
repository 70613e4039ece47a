"""From what is wanted and what there is to what must be done. Pure, and recomputed from the whole each time: doing
nothing, or doing it twice, is harmless.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controller.planning.allocation import Load, Party, Swap, find_move, find_swap, saves
from controller.planning.placement import Berth, Rooms, in_gib
from controller.planning.scale_down import leave
from controller.types import (
    Action,
    Crashes,
    Decision,
    Device,
    Drain,
    Exit,
    Limits,
    Observation,
    Replica,
    Stage,
    Start,
)

#: A worker that served for this long was healthy: its death is no reason to wait.
HEALTHY_AFTER_S = 30.0
#: A worker started after a crash that has served for this long shows that the model is well again.
_FORGIVEN_AFTER_S = 60.0
_LONGEST_BACK_OFF_S = 60.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model's part of the plan."""

    seen: Observation
    decision: Decision
    limits: Limits
    crashes: Crashes
    #: Devices that its workers may have; a device that stands here twice may have two.
    slots: Sequence[str]
    #: Bytes of a device that one worker needs; None for all that it has.
    need: int | None = None
    #: Whether memory alone bounds how many of its workers share a device.
    share: bool = False
    #: What it has to do; None where nobody knows.
    load: Load | None = None
    #: Workers that are to be replaced, by why, and how many more than decided there may be for that.
    outdated: Mapping[str, str] = field(default_factory=dict)
    surge: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and what could not be done and why, by model."""

    actions: Sequence[Action]
    obstacles: dict[str, str]
    #: The drains that make room for another model.
    swaps: Sequence[Swap] = ()


def make_plan(wanted: Sequence[Wanted], now: float, devices: Mapping[str, Device] | None = None) -> Plan:
    """Kill what hangs, drain what is too much, start what is missing, where there is room.

    `devices` are those whose memory is counted, or that are to be left alone. What a model lacks to its minimum is
    started before anything else, and where it must wait, after a crash, its place is kept: a busy model never takes
    the device of another's only worker. What is left goes to where one worker more saves the most waiting. A model
    without its due makes those give way that have more than theirs.
    """
    draft = _Draft(wanted, now, devices or {})
    draft.leave()
    draft.fill()
    draft.renew()
    return Plan(draft.actions, draft.obstacles(), draft.swaps)


class _Draft:
    """A plan in the making."""

    def __init__(self, wanted: Sequence[Wanted], now: float, devices: Mapping[str, Device]) -> None:
        self._wanted = wanted
        self._now = now
        self._devices = devices
        self.actions: list[Action] = []
        self.swaps: list[Swap] = []
        #: Models with the same devices share one count of them.
        slots = [tuple(own.slots) for own in wanted]
        places = {each: Counter(each) for each in set(slots)}
        self._parties = [_party(own, places[each]) for own, each in zip(wanted, slots, strict=True)]
        #: For each model that waits for a place, who has to leave it first.
        self._waits: dict[str, str] = {}
        self._rooms = Rooms(devices)

    def leave(self) -> None:
        """Decide who goes, and count who holds what."""
        for own, party in zip(self._wanted, self._parties, strict=True):
            leaving, party.staying = leave(own.seen, own.decision, own.limits, self._now, own.outdated, own.surge)
            self.actions += leaving
            party.count = len(party.staying)
        self._rooms = self._count(tight=False)
        lacking = [berth for berth, missing in self._lacking() for _ in range(missing)]
        if lacking and self._devices:
            spread = _fitting(self._count(tight=False), lacking)
            if spread < len(lacking) and _fitting(self._count(tight=True), lacking) > spread:
                self._rooms = self._count(tight=True)

    def _count(self, *, tight: bool) -> Rooms:
        """The rooms with those who are in them."""
        rooms = Rooms(self._devices, tight=tight)
        for own, party in zip(self._wanted, self._parties, strict=True):
            staying = {replica.child.id for replica in party.staying}
            for replica in own.seen.replicas:
                rooms.hold(replica.child.device, party.berth)
                if replica.child.id not in staying:
                    rooms.leave(replica.child.device, party.berth, replica.child.id)
        return rooms

    def _lacking(self) -> list[tuple[Berth, int]]:
        """Who lacks how many to its minimum, the largest first."""
        lacking = [(party.berth, party.least - party.count) for party in self._parties if party.count < party.least]
        return sorted(lacking, key=lambda entry: -_size(entry[0]))

    def fill(self) -> None:
        """Give places to those that miss workers, the most urgent first."""
        line = [self._turn(n) for n, own in enumerate(self._wanted) if self._parties[n].count < own.decision.desired]
        heapq.heapify(line)
        while line:
            number = heapq.heappop(line)[-1]
            party = self._parties[number]
            if self._serve(number):
                party.count += 1
                if party.count < self._wanted[number].decision.desired:
                    heapq.heappush(line, self._turn(number))

    def _turn(self, number: int) -> tuple[int, float, float, int]:
        """By rank. What is owed: the largest first, that it finds room. The rest: by what it saves, then by lack."""
        own, party = self._wanted[number], self._parties[number]
        rank = party.rank()
        gain = _size(party.berth) if rank == 0 else saves(own.load, party.count + 1)
        return rank, -gain, (party.count + 1) / own.decision.desired, number

    def _serve(self, number: int) -> bool:
        """Find a place for one more worker of the model: now, after another has left, or by making one leave."""
        own, party = self._wanted[number], self._parties[number]
        may_start = self._now >= own.crashes.retry_at
        if not may_start and party.rank() > 0:
            return False
        if device := self._rooms.take(party.berth):
            if may_start:
                self.actions.append(Start(own.seen.model, device, own.decision.reason))
            return True
        if not may_start:
            return False
        device = self._rooms.await_one(party.berth)
        if device is None and self._swap(party):
            device = self._rooms.await_one(party.berth)
        if device is None and party.rank() < 2 and (device := self._rooms.take_rest(party.berth)):
            # Rather beside others and perhaps short of memory than never: nobody knows yet that it does not fit.
            self.actions.append(Start(own.seen.model, device, own.decision.reason))
            return True
        if device is not None:
            self._waits[own.seen.model] = f"{' and '.join(self._rooms.leaving[device])} to leave {device}"
        return device is not None

    def _swap(self, taker: Party) -> bool:
        """Make others give way, if that is due or worth it."""
        swaps = find_swap(taker, self._parties, self._rooms, self._now)
        if not swaps and taker.rank() == 0:
            swaps = find_move(taker, self._parties, self._rooms)
        for swap in swaps:
            giver = next(party for party in self._parties if party.berth.model == swap.giver)
            giver.staying = [replica for replica in giver.staying if replica.child.id != swap.worker]
            giver.count -= 1
            self._rooms.leave(swap.device, giver.berth, swap.worker)
            self.actions.append(Drain(swap.worker, swap.reason))
        self.swaps += swaps
        return bool(swaps)

    def renew(self) -> None:
        """Start a worker that takes an outdated one's place; where there is no room for both, that one goes first."""
        started = {action.model for action in self.actions if isinstance(action, Start)}
        for own, party in zip(self._wanted, self._parties, strict=True):
            staying = {replica.child.id for replica in party.staying}
            going = next((name for name in own.outdated if name in staying), None)
            under_way = len(staying) > own.decision.desired or len(staying) < len(own.seen.replicas)
            if own.surge == 0 or going is None or under_way or own.seen.model in started:
                continue
            why = own.outdated[going]
            if device := self._rooms.take(party.berth):
                self.actions.append(Start(own.seen.model, device, f"to take the place of {going}: {why}"))
            else:
                self.actions.append(Drain(going, f"{why}; no place is free, so it goes before the next one comes"))

    def obstacles(self) -> dict[str, str]:
        """Why models have fewer workers than they should, or will have them late."""
        started = Counter(action.model for action in self.actions if isinstance(action, Start))
        found = {}
        for own, party in zip(self._wanted, self._parties, strict=True):
            model = own.seen.model
            short = own.decision.desired - len(party.staying) - started[model]
            if short > 0:
                found[model] = self._obstacle(own, party.berth, short)
        return found

    def _obstacle(self, own: Wanted, berth: Berth, short: int) -> str:
        if self._now < own.crashes.retry_at:
            crashes = "1 crash" if own.crashes.count == 1 else f"{own.crashes.count} crashes in a row"
            return f"{crashes}, next try in {own.crashes.retry_at - self._now:.0f} s"
        if own.seen.model in self._waits:
            return f"{short} more wanted: waiting for {self._waits[own.seen.model]}"
        faulty = (device for device in self._devices.values() if device.fault and device.name in berth.places)
        aside = [f"{device.name} is left alone ({device.fault})" for device in faulty]
        return "; ".join([f"{short} more wanted, but {self._lack(berth)}", *aside])

    def _lack(self, berth: Berth) -> str:
        """What there is not."""
        most = self._rooms.most_free(berth)
        if most is None:
            return "every device is taken"
        free, device = most
        if berth.need is None:
            return f"no GPU is free for it alone, as long as its memory is not known (models.{berth.model}.gpu_memory)"
        if free >= berth.need:
            return "each GPU that has room already has one of its workers (devices.share is false)"
        return f"no GPU has {in_gib(berth.need)} free: the most is {in_gib(max(free, 0))} on {device}"


def _fitting(rooms: Rooms, berths: Sequence[Berth]) -> int:
    return sum(rooms.take(berth) is not None for berth in berths)


def _party(own: Wanted, places: Mapping[str, int]) -> Party:
    queue, replicas = own.seen.queue, own.seen.replicas
    busy = None if queue is None else queue.queued + queue.running > 0 or any(r.load for r in replicas)
    berth = Berth(own.seen.model, own.need, places, own.share)
    return Party(berth, [], 0, own.limits.min_workers, own.load, own.seen.cold_start_s, busy)


def _size(berth: Berth) -> float:
    return math.inf if berth.need is None else float(berth.need)


def after_exit(crashes: Crashes, ended: Exit) -> tuple[Crashes, bool]:
    """The model's crash record after this exit, and whether the exit was a crash.

    A worker that was told to go, by us or by its operator (status 0), did not crash. One that dies before it has
    served for `HEALTHY_AFTER_S` delays the next start by 1, 2, 4, ... 60 s; one that dies later is replaced at once.
    """
    child = ended.child
    if child.drained_at is not None or ended.status == 0:
        return crashes, False
    if child.ready_at is not None and ended.at - child.ready_at >= HEALTHY_AFTER_S:
        return Crashes(), True
    return one_more(crashes, ended.at), True


def one_more(crashes: Crashes, at: float) -> Crashes:
    """The record after one more crash, with the pause that follows from it."""
    count = crashes.count + 1
    return Crashes(count, at + min(2.0 ** (count - 1), _LONGEST_BACK_OFF_S), at)


def forgive(crashes: Crashes, replicas: Sequence[Replica], now: float) -> Crashes:
    """The record, wiped clean when a worker that became ready after the last crash has stayed well."""
    well = (
        replica.stage is Stage.READY
        and replica.child.ready_at is not None
        and crashes.last_at < replica.child.ready_at <= now - _FORGIVEN_AFTER_S
        for replica in replicas
    )
    return Crashes() if any(well) else crashes


def still_owed(lost: int, desired: int, replicas: Sequence[Replica]) -> int:
    """How many of the workers lost since the last full count have no successor yet."""
    present = sum(replica.stage is not Stage.DRAINING for replica in replicas)
    return max(min(lost, desired - present), 0)
