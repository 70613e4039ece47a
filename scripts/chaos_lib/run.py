"""One profile from its start to its verdict: load and troubles side by side, then rest, then a look at the books."""

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
from scripts.chaos_lib.clients import Visitors
from scripts.chaos_lib.fault_plan import Trouble, asks, troubles
from scripts.chaos_lib.instance import FaultyInstance
from scripts.chaos_lib.monitor import Reading, Watch
from scripts.chaos_lib.outcomes import End, Story, faults
from scripts.chaos_lib.profiles import OWNERS, Profile
from scripts.chaos_lib.reference_images import judge

#: From the start to the first ready worker, and from the last answer until everything is at rest.
_READY_S, _REST_S = 180.0, 90.0
#: A worker that steps although it holds nothing is seen within this time: a few heartbeats.
_STILL_S = 2.0
_ENDS = ("done", "failed", "cancelled")

Tell = Callable[[str], None]


@dataclass
class Verdict:
    """All that is known in the end."""

    profile: Profile
    seed: int
    seconds: float
    folder: Path
    stories: list[Story]
    #: What was done, by kind; and each with its time and whom it hit.
    troubles: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    #: What the balancers counted, over all their lives, and steps of images that all workers made.
    events: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    balancers: int = 0
    most_workers: int = 0
    leaked: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    #: Programs that ended although nobody told them to, and tracebacks in their logs.
    fallen: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Everything that must not be."""
        return [*faults(self.stories), *self.leaked, *(f"left over: {one}" for one in self.left), *self.fallen]


async def run(profile: Profile, seed: int, seconds: float, folder: Path, tell: Tell) -> Verdict:
    """The whole run. `folder` is empty and stays; `tell` hears how it goes. Raises `RuntimeError` if nothing starts."""
    plan = f"{seed} {profile.name}"
    wanted = [Story(ask) for ask in asks(plan, profile.wishes, list(OWNERS), seconds)]
    verdict = Verdict(profile, seed, seconds, folder, wanted)
    instance = FaultyInstance(folder, profile)
    watch = Watch(instance)
    try:
        await _ready(instance, tell)
        async with _beside(watch), Visitors(instance.url, instance.tokens, watch) as visitors:
            broken = asyncio.create_task(_break(instance, troubles(plan, profile.wishes, seconds), verdict))
            visits = [asyncio.create_task(_visit(visitors, story)) for story in wanted]
            while not all(task.done() for task in [*visits, broken]):
                tell(_state(verdict, watch))
                await asyncio.sleep(0.5)
            await asyncio.gather(*visits, broken)
            tell("waiting for rest")
            verdict.leaked = await _rest(watch, tell)
            await _look_up(visitors, verdict)
            if instance.has_crashed:
                verdict.fallen.append("the controller has ended by itself")
    finally:
        tell("stopping")
        verdict.left = await instance.stop()
    seen = watch.seen
    verdict.events, verdict.balancers, verdict.most_workers = seen.total, len(seen.deaths) + 1, seen.most_workers
    verdict.rows = sum(counters.rows for counters in seen.workers.values())
    verdict.fallen += _tracebacks(folder)
    judge(profile.name, wanted, lambda done, of: tell(f"comparing images: {done} of {of} requests"))
    return verdict


async def _ready(instance: FaultyInstance, tell: Tell) -> None:
    tell("starting the server")
    async with aiohttp.ClientSession() as session:
        by = time.monotonic() + _READY_S
        while time.monotonic() < by and not instance.has_crashed:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{instance.url}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)
    raise RuntimeError(f"the server did not start; see {instance.folder}")


@contextlib.asynccontextmanager
async def _beside(watch: Watch) -> AsyncIterator[None]:
    """The watch, as long as the block lasts."""
    task = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _visit(visitors: Visitors, story: Story) -> None:
    await asyncio.sleep(story.ask.at_s)
    await visitors.visit(story)


async def _break(instance: FaultyInstance, planned: Sequence[Trouble], verdict: Verdict) -> None:
    """Do what is planned when it is due; a stopped process goes on by itself while others follow."""
    began = time.monotonic()

    async def one(trouble: Trouble) -> None:
        await asyncio.sleep(trouble.at_s)
        whom = await instance.inject(trouble)
        if whom:
            verdict.troubles[str(trouble)] += 1
        at = time.monotonic() - began
        verdict.log.append(f"{trouble.at_s:6.1f} to {at:6.1f} s: {trouble}: {whom or 'nobody was there'}")

    await asyncio.gather(*(one(trouble) for trouble in planned))


async def _rest(watch: Watch, tell: Tell) -> list[str]:
    """Wait until nothing is under way any more; returns what still is."""
    by = time.monotonic() + _REST_S
    still = ["the balancer does not answer"]
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < by:
            reading = await watch.read(session)
            still = ["the balancer does not answer"] if reading is None else under_way(reading)
            if reading is not None and not still:
                await asyncio.sleep(_STILL_S)
                later = await watch.read(session)
                still = ghosts(reading, later)
                if not still:
                    return []
            tell(f"waiting for rest: {'; '.join(still)[:100]}")
            await asyncio.sleep(0.5)
    return still


def under_way(reading: Reading) -> list[str]:
    """What a server at rest has not."""
    told = [
        f"{model.queued} images queued and {model.running} with workers"
        for model in reading.snapshot.models
        if model.queued or model.running
    ]
    told += [
        f"worker {worker.worker} is {worker.state} and holds {worker.assigned + worker.running} images"
        for worker in reading.snapshot.workers
        if worker.state != "ready" or worker.assigned + worker.running
    ]
    return told + [f"the balancer still has {count:g} {book}" for book, count in reading.open.items() if count]


def ghosts(before: Reading, after: Reading | None) -> list[str]:
    """Workers that step although, by the balancer's books, they hold nothing."""
    if after is None:
        return ["the balancer does not answer"]
    steps = {worker.worker: worker.counters.steps for worker in before.snapshot.workers}
    return [
        f"worker {worker.worker} steps, and nobody has given it anything"
        for worker in after.snapshot.workers
        if worker.counters.steps != steps.get(worker.worker, worker.counters.steps)
    ]


async def _look_up(visitors: Visitors, verdict: Verdict) -> None:
    """Hold the jobs that the server has against those that were asked for."""
    stories = {story.ask.id: story for story in verdict.stories}
    kept: Counter[str] = Counter()
    for owner in OWNERS:
        for view in await visitors.jobs_of(owner):
            story = stories[view["metadata"]["ask"]]
            kept[story.ask.id] += 1
            if view["state"] not in _ENDS:
                story.close(End.LOST, f"job {view['id']} is still {view['state']}")
    for name, count in kept.items():
        if count > 1:
            stories[name].twice.append(f"one request made {count} jobs")


def _tracebacks(folder: Path) -> list[str]:
    """What the programs' logs tell of bugs: for each log with tracebacks how many, and where the first one is."""
    found = []
    for log in sorted([*folder.glob("*.log"), *log_dir(folder).glob("*.log")]):
        lines = log.read_text(errors="replace").splitlines()
        starts = [number for number, line in enumerate(lines, 1) if line.startswith("Traceback")]
        if starts:
            found.append(f"{len(starts)} tracebacks in {log.name}, the first in line {starts[0]}")
    return found


def _state(verdict: Verdict, watch: Watch) -> str:
    """The line that is shown while it runs."""
    ends = Counter(story.end for story in verdict.stories)
    began = sum(story.began > 0 for story in verdict.stories)
    last = watch.seen.last
    workers = len(last.snapshot.workers) if last else 0
    queued = sum(model.queued for model in last.snapshot.models) if last else 0
    return (
        f"{began} of {len(verdict.stories)} asked, {ends[End.COMPLETED]} completed, {ends[End.FAILED]} failed, "
        f"{ends[End.LOST]} lost; {workers} workers, {queued} queued; {verdict.troubles.total()} troubles, "
        f"{len(watch.seen.deaths)} balancers dead"
    )
