"""Looks at the server from outside while it is in trouble: when balancers died, and what the programs have counted.

Counters live and die with their program. What is read here are sums over all lives, each as it was last told: what a
killed program counted after that is missing, so every sum is a little too low.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from scripts.chaos_lib.instance import FaultyInstance
from wire.messages import WorkerCounters
from wire.snapshot import Snapshot

_LOOK_S = 0.05
_READ_S = 0.5
_PATIENCE_S = 5.0


@dataclass
class Reading:
    """What the balancer told at one moment."""

    snapshot: Snapshot
    #: Counters of what happened, and what is under way.
    events: Counter[str]
    open: dict[str, float]


@dataclass
class Seen:
    """What was seen so far."""

    #: Times (`time.monotonic`) at which a balancer was found dead, and at which the one after the last was first heard.
    deaths: list[float] = field(default_factory=list)
    back_at: float = 0.0
    #: Counters of the balancers that are gone, and of the one that is there.
    before: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    uptime_s: float = 0.0
    #: The last word of every worker that there ever was.
    workers: dict[str, WorkerCounters] = field(default_factory=dict)
    most_workers: int = 0
    last: Reading | None = None

    @property
    def total(self) -> Counter[str]:
        """What all balancers together have counted."""
        return self.before + self.events

    def died(self, at: float) -> None:
        """A balancer was found dead."""
        self.deaths.append(at)
        self.back_at = math.inf

    def explains(self, began: float) -> bool:
        """Whether a connection that began then may have broken because a balancer died.

        It did so later; or it had before, but its last threads still held the port, for no other one had answered yet.
        """
        return self.back_at >= began or any(death >= began for death in self.deaths)

    def take_in(self, reading: Reading, at: float) -> None:
        """One more reading; an uptime that falls shows a new balancer."""
        if self.back_at == math.inf and reading.snapshot.uptime_s <= at - self.deaths[-1]:
            self.back_at = at
        if reading.snapshot.uptime_s < self.uptime_s:
            self.before += self.events
        self.uptime_s, self.events, self.last = reading.snapshot.uptime_s, reading.events, reading
        self.most_workers = max(self.most_workers, len(reading.snapshot.workers))
        for worker in reading.snapshot.workers:
            known = self.workers.get(worker.worker, WorkerCounters())
            self.workers[worker.worker] = max(known, worker.counters, key=lambda counters: counters.rows)


class Watch:
    """Runs beside the load."""

    def __init__(self, instance: FaultyInstance) -> None:
        self._instance = instance
        self.seen = Seen()

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look())
            group.create_task(self._read())

    async def explains(self, began: float, patience_s: float) -> bool:
        """Whether a death of a balancer explains what happened to a connection; it may take a while to be seen."""
        deadline = time.monotonic() + patience_s
        while not (found := self.seen.explains(began)) and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_S)
        return found

    async def read(self, session: aiohttp.ClientSession) -> Reading | None:
        """What the balancer tells now; None where it does not answer."""
        headers = {"authorization": f"Bearer {self._instance.token}"}
        url = self._instance.url
        try:
            async with session.get(f"{url}/internal/snapshot", headers=headers) as answer:
                snapshot = msgspec.json.decode(await answer.read(), type=Snapshot)
            async with session.get(f"{url}/metrics", headers=headers) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError):
            return None
        events, books = Counter[str](), dict[str, float]()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "muster_events_total":
                    events[sample.labels["event"]] = int(sample.value)
                elif sample.name == "muster_in_flight":
                    books[sample.labels["kind"]] = sample.value
        return Reading(snapshot, events, books)

    async def _look(self) -> None:
        known: int | None = None
        while True:
            pid = self._instance.balancer_pid()
            if known is not None and pid != known:
                self.seen.died(time.monotonic())
            known = pid
            await asyncio.sleep(_LOOK_S)

    async def _read(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PATIENCE_S)) as session:
            while True:
                reading = await self.read(session)
                if reading is not None:
                    self.seen.take_in(reading, time.monotonic())
                await asyncio.sleep(_READ_S)
