"""Observation of a server during a chaos run: deaths of balancers, and counters.

A counter starts at zero with its program. The sums here add the last scrape of each program. They are slightly too
low, because the counts of a killed program after its last scrape are missing.
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

_POLL_S = 0.05
_SCRAPE_S = 0.5
_TIMEOUT_S = 5.0


@dataclass
class Scrape:
    """The balancer's state at one moment."""

    snapshot: Snapshot
    #: `muster_events_total` by event, and `muster_in_flight` by kind.
    events: Counter[str]
    in_flight: dict[str, float]


@dataclass
class Observations:
    """Everything that was observed so far."""

    #: Times (`time.monotonic`) of balancer deaths, and of the first answer after the last of them.
    deaths: list[float] = field(default_factory=list)
    back_at: float = 0.0
    #: Counters of earlier balancers, and of the current one.
    earlier_events: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    uptime_s: float = 0.0
    #: The last counters of every worker of the run.
    workers: dict[str, WorkerCounters] = field(default_factory=dict)
    max_workers: int = 0
    last: Scrape | None = None

    @property
    def total(self) -> Counter[str]:
        """The events of all balancers."""
        return self.earlier_events + self.events

    def record_death(self, at: float) -> None:
        self.deaths.append(at)
        self.back_at = math.inf

    def has_death_since(self, started: float) -> bool:
        """Return whether a connection from that time may have broken because a balancer died.

        The death may be earlier if no new balancer had answered: the last threads of the dead one still held the port.
        """
        return self.back_at >= started or any(death >= started for death in self.deaths)

    def add(self, scrape: Scrape, at: float) -> None:
        """Add a scrape. A lower uptime than before means a new balancer."""
        if self.back_at == math.inf and scrape.snapshot.uptime_s <= at - self.deaths[-1]:
            self.back_at = at
        if scrape.snapshot.uptime_s < self.uptime_s:
            self.earlier_events += self.events
        self.uptime_s, self.events, self.last = scrape.snapshot.uptime_s, scrape.events, scrape
        self.max_workers = max(self.max_workers, len(scrape.snapshot.workers))
        for worker in scrape.snapshot.workers:
            counters = self.workers.get(worker.worker, WorkerCounters())
            self.workers[worker.worker] = max(counters, worker.counters, key=lambda each: each.rows)


class Monitor:
    """Observes the server concurrently with the load."""

    def __init__(self, instance: FaultyInstance) -> None:
        self._instance = instance
        self.observations = Observations()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poll_balancer())
            group.create_task(self._scrape_forever())

    async def has_death_since(self, started: float, patience_s: float) -> bool:
        """Wait up to `patience_s` for the observation of a balancer death that may have broken a connection."""
        deadline = time.monotonic() + patience_s
        while not (found := self.observations.has_death_since(started)) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        return found

    async def scrape(self, session: aiohttp.ClientSession) -> Scrape | None:
        """Return the current state, or None if the balancer does not answer."""
        headers = {"authorization": f"Bearer {self._instance.token}"}
        url = self._instance.url
        try:
            async with session.get(f"{url}/internal/snapshot", headers=headers) as answer:
                snapshot = msgspec.json.decode(await answer.read(), type=Snapshot)
            async with session.get(f"{url}/metrics", headers=headers) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError):
            return None
        events, in_flight = Counter[str](), dict[str, float]()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "muster_events_total":
                    events[sample.labels["event"]] = int(sample.value)
                elif sample.name == "muster_in_flight":
                    in_flight[sample.labels["kind"]] = sample.value
        return Scrape(snapshot, events, in_flight)

    async def _poll_balancer(self) -> None:
        last_pid: int | None = None
        while True:
            pid = self._instance.balancer_pid()
            if last_pid is not None and pid != last_pid:
                self.observations.record_death(time.monotonic())
            last_pid = pid
            await asyncio.sleep(_POLL_S)

    async def _scrape_forever(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as session:
            while True:
                scrape = await self.scrape(session)
                if scrape is not None:
                    self.observations.add(scrape, time.monotonic())
                await asyncio.sleep(_SCRAPE_S)
