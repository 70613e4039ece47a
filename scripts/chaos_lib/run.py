"""One chaos run: load and faults at the same time, then a wait for an idle server, then the checks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from configs.paths import log_dir
from scripts.chaos_lib.clients import ChaosClients
from scripts.chaos_lib.fault_plan import Fault, plan_faults, plan_requests
from scripts.chaos_lib.instance import FaultyInstance
from scripts.chaos_lib.monitor import Monitor, Scrape
from scripts.chaos_lib.outcomes import EndState, Outcome, violations
from scripts.chaos_lib.profiles import OWNERS, Profile
from scripts.chaos_lib.reference_images import check_images

#: Time limits for the start of the server, and for its return to idle after the last answer.
_READY_S, _IDLE_TIMEOUT_S = 180.0, 90.0
#: A few heartbeats: steps of a worker without tasks are observed within this time.
_SETTLE_S = 2.0
_ENDS = ("done", "failed", "cancelled")

ShowStatus = Callable[[str], None]


@dataclass
class ChaosResult:
    """Everything that is known at the end of a run."""

    profile: Profile
    seed: int
    seconds: float
    folder: Path
    outcomes: list[Outcome]
    #: Injected faults by kind, and a line for each with its time and its process.
    faults: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    #: Sums over all balancers, and denoising steps of all workers.
    events: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    balancers: int = 0
    max_workers: int = 0
    leaked: list[str] = field(default_factory=list)
    leftover: list[str] = field(default_factory=list)
    #: Programs that ended without a fault, and tracebacks in their logs.
    crashes: list[str] = field(default_factory=list)

    @property
    def violations(self) -> list[str]:
        return [
            *violations(self.outcomes),
            *self.leaked,
            *(f"left over: {process}" for process in self.leftover),
            *self.crashes,
        ]


async def run(profile: Profile, seed: int, seconds: float, folder: Path, show: ShowStatus) -> ChaosResult:
    """Run it in the empty `folder`, which is kept. Raises `RuntimeError` if the server does not start."""
    plan = f"{seed} {profile.name}"
    outcomes = [Outcome(request) for request in plan_requests(plan, profile.load, list(OWNERS), seconds)]
    result = ChaosResult(profile, seed, seconds, folder, outcomes)
    instance = FaultyInstance(folder, profile)
    monitor = Monitor(instance)
    try:
        await _wait_ready(instance, show)
        async with (
            _monitoring(monitor),
            ChaosClients(instance.url, instance.tokens, monitor, profile) as clients,
        ):
            injection = asyncio.create_task(_inject_faults(instance, plan_faults(plan, profile.load, seconds), result))
            senders = [asyncio.create_task(_send_when_due(clients, outcome)) for outcome in outcomes]
            while not all(task.done() for task in [*senders, injection]):
                show(_status_line(result, monitor))
                await asyncio.sleep(0.5)
            await asyncio.gather(*senders, injection)
            show("waiting for an idle server")
            result.leaked = await _wait_idle(monitor, show)
            await _check_jobs(clients, result)
            if instance.has_crashed:
                result.crashes.append("the controller has ended by itself")
            result.crashes += [f"the agent of {name} has ended by itself" for name in instance.ended_agents()]
    finally:
        show("stopping")
        result.leftover = await instance.stop()
    observations = monitor.observations
    result.events, result.balancers, result.max_workers = (
        observations.total,
        len(observations.deaths) + 1,
        observations.max_workers,
    )
    result.rows = sum(counters.rows for counters in observations.workers.values())
    result.crashes += _tracebacks(folder)
    check_images(profile.name, outcomes, lambda done, of: show(f"comparing images: {done} of {of} requests"))
    return result


async def _wait_ready(instance: FaultyInstance, show: ShowStatus) -> None:
    show("starting the server")
    async with aiohttp.ClientSession() as session:
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline and not instance.has_crashed:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{instance.url}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)
    raise RuntimeError(f"the server did not start; see {instance.folder}")


@contextlib.asynccontextmanager
async def _monitoring(monitor: Monitor) -> AsyncIterator[None]:
    task = asyncio.create_task(monitor.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _send_when_due(clients: ChaosClients, outcome: Outcome) -> None:
    await asyncio.sleep(outcome.request.at_s)
    await clients.send(outcome)


async def _inject_faults(instance: FaultyInstance, planned: Sequence[Fault], result: ChaosResult) -> None:
    """Inject each fault at its time. Faults overlap."""
    started = time.monotonic()

    async def inject(fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        process = await instance.inject(fault)
        if process:
            result.faults[str(fault)] += 1
        at = time.monotonic() - started
        result.log.append(f"{fault.at_s:6.1f} to {at:6.1f} s: {fault}: {process or 'no such process'}")

    await asyncio.gather(*(inject(fault) for fault in planned))


async def _wait_idle(monitor: Monitor, show: ShowStatus) -> list[str]:
    """Wait until the server is idle. Return the work that is unfinished after the time limit."""
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    unfinished = ["the balancer does not answer"]
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            scrape = await monitor.scrape(session)
            unfinished = ["the balancer does not answer"] if scrape is None else unfinished_work(scrape)
            if scrape is not None and not unfinished:
                await asyncio.sleep(_SETTLE_S)
                later = await monitor.scrape(session)
                unfinished = unassigned_steps(scrape, later)
                if not unfinished:
                    return []
            show(f"waiting for an idle server: {'; '.join(unfinished)[:100]}")
            await asyncio.sleep(0.5)
    return unfinished


def unfinished_work(scrape: Scrape) -> list[str]:
    found = [
        f"{model.queued} images queued and {model.running} with workers"
        for model in scrape.snapshot.models
        if model.queued or model.running
    ]
    found += [
        f"worker {worker.worker} is {worker.state} and holds {worker.assigned + worker.running} images"
        for worker in scrape.snapshot.workers
        if worker.state != "ready" or worker.assigned + worker.running
    ]
    return found + [f"the balancer still has {count:g} {kind}" for kind, count in scrape.in_flight.items() if count]


def unassigned_steps(before: Scrape, after: Scrape | None) -> list[str]:
    """Return a line for each worker that runs steps although no task is assigned to it."""
    if after is None:
        return ["the balancer does not answer"]
    steps = {worker.worker: worker.counters.steps for worker in before.snapshot.workers}
    return [
        f"worker {worker.worker} runs steps without a task"
        for worker in after.snapshot.workers
        if worker.counters.steps != steps.get(worker.worker, worker.counters.steps)
    ]


async def _check_jobs(clients: ChaosClients, result: ChaosResult) -> None:
    """Compare the jobs of the server with the requests for jobs."""
    outcomes = {outcome.request.id: outcome for outcome in result.outcomes}
    job_counts: Counter[str] = Counter()
    for owner in OWNERS:
        for view in await clients.list_jobs(owner):
            outcome = outcomes[view["metadata"]["request"]]
            job_counts[outcome.request.id] += 1
            if view["state"] not in _ENDS:
                outcome.close(EndState.LOST, f"job {view['id']} is still {view['state']}")
    for name, count in job_counts.items():
        if count > 1:
            outcomes[name].duplicates.append(f"one request made {count} jobs")


def _tracebacks(folder: Path) -> list[str]:
    """Return a line for each log with tracebacks: their number and the line of the first."""
    found = []
    folders = [folder, *(agent.parent for agent in folder.glob("*/agent.log"))]
    for log in sorted(log for each in folders for log in [*each.glob("*.log"), *log_dir(each).glob("*.log*")]):
        lines = log.read_text(errors="replace").splitlines()
        starts = [number for number, line in enumerate(lines, 1) if line.lstrip().startswith("Traceback")]
        if starts:
            found.append(f"{len(starts)} tracebacks in {log.name}, the first in line {starts[0]}")
    return found


def _status_line(result: ChaosResult, monitor: Monitor) -> str:
    ends = Counter(outcome.end for outcome in result.outcomes)
    started = sum(outcome.started > 0 for outcome in result.outcomes)
    last = monitor.observations.last
    workers = len(last.snapshot.workers) if last else 0
    queued = sum(model.queued for model in last.snapshot.models) if last else 0
    return (
        f"{started} of {len(result.outcomes)} sent, {ends[EndState.COMPLETED]} completed, "
        f"{ends[EndState.FAILED]} failed, {ends[EndState.LOST]} lost; {workers} workers, {queued} queued; "
        f"{result.faults.total()} faults, {len(monitor.observations.deaths)} balancers dead"
    )
