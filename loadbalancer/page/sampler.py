"""Looks at the server once a second: keeps its past, and tells the pages what has changed."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import msgspec

from loadbalancer.background_tasks import TaskSupervisor
from loadbalancer.page.feed import Feed, Subscription
from loadbalancer.page.history import ModelHistory, Points, Sample
from loadbalancer.page.live_state import Tables, changes, decision_row, live_state
from loadbalancer.page.recent_starts import RecentStarts, Starts
from loadbalancer.page.usage import UsageHistory, list_usage, totals_by_owner
from loadbalancer.scaling.control_plane import ControlPlane
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.model_statistics import Totals
from loadbalancer.schema.page import UsagePage
from wire.scaling import ModelRecord
from wire.snapshot import ModelStats

_EVERY_S = 1.0
#: Decisions that a page gets when it connects.
_FIRST_DECISIONS = 200


class PageSampler:
    """The past of each model, and the live state. All methods are called in the event loop."""

    def __init__(self, scheduler: SchedulerService, control: ControlPlane) -> None:
        self._scheduler = scheduler
        self._control = control
        self._tasks = TaskSupervisor()
        self._histories: dict[str, ModelHistory] = {}
        self._totals: dict[str, Totals] = {}
        self._starts: defaultdict[str, RecentStarts] = defaultdict(RecentStarts)
        self._recent_starts: dict[str, Starts] = {}
        self._usage = UsageHistory()
        self._shown: Tables = {}
        self._last_decision = 0
        self.feed = Feed()
        self.task_failures = self._tasks.failures

    def start(self) -> None:
        self._tasks.run_forever("page sampler", self._run)

    async def stop(self) -> None:
        """End the streams of all pages. Idempotent."""
        self.feed.close()
        await self._tasks.stop()

    def points(self, model: str, span_s: int) -> Points:
        """Return the past of a served model."""
        return self._histories.get(model, ModelHistory()).points(span_s, int(time.time()))

    def usage(self, owner: str | None) -> UsagePage:
        """Return the use by all owners, or by one."""
        totals = totals_by_owner(self._scheduler.owners.usage)
        tasks = self._scheduler.scheduler_state.tasks.values()
        return list_usage(totals, self._usage.hour_before(time.monotonic()), tasks, owner)

    def connect(self) -> Subscription:
        """Return a stream that begins with the whole state. Raises `TooManySubscribers`."""
        subscription = self.feed.subscribe()
        decisions = self._control.page(None, None, _FIRST_DECISIONS).decisions
        if len(self.feed) == 1:  # nobody has looked: what was last shown is old
            self._shown = self._state()
            self._last_decision = decisions[0].number if decisions else 0
        # Later ones follow with the next message, for all pages.
        rows = [decision_row(each) for each in reversed(decisions) if each.number <= self._last_decision]
        subscription.put(_event("state", {"time": time.time(), **self._shown, "decisions": rows}))
        return subscription

    async def _run(self) -> None:
        while True:
            started = time.monotonic()
            self._look()
            await asyncio.sleep(max(_EVERY_S - (time.monotonic() - started), 0.1))

    def _look(self) -> None:
        now, monotonic = time.time(), time.monotonic()
        snapshot, records = self._scheduler.snapshot(), self._control.models(monotonic)
        if self._usage.is_due(monotonic):
            self._usage.add(monotonic, totals_by_owner(self._scheduler.owners.usage))
        latest: dict[str, Any] = {}
        for stats in snapshot.models:
            totals = self._scheduler.totals(stats.model)
            before = self._totals.get(stats.model, totals)
            self._totals[stats.model] = totals
            sample = _sample(stats, records.get(stats.model), totals, before)
            history = self._histories.get(stats.model)
            if history is None:
                history = self._histories[stats.model] = ModelHistory()
            history.add(int(now), sample)
            unstarted = stats.unstarted_late_total
            starts = Starts(stats.started_total + unstarted, stats.started_late_total + unstarted)
            self._recent_starts[stats.model] = self._starts[stats.model].update(monotonic, starts)
            if len(self.feed):
                latest[stats.model] = history.latest()._asdict()
        if len(self.feed):
            self._publish(now, latest)

    def _publish(self, now: float, latest: Mapping[str, Any]) -> None:
        state = self._state()
        body: dict[str, Any] = {"time": now, **changes(self._shown, state), "points": latest}
        self._shown = state
        decisions = self._control.page(None, None, _FIRST_DECISIONS).decisions
        new = [each for each in reversed(decisions) if each.number > self._last_decision]
        if new:
            self._last_decision = new[-1].number
            body["decisions"] = [decision_row(each) for each in new]
        elif decisions and decisions[0].number < self._last_decision:  # the controller counts anew
            self._last_decision = 0
        self.feed.publish(_event("changes", body))

    def _state(self) -> Tables:
        report = self._control.report(time.monotonic())
        return live_state(self._scheduler.snapshot(), report, self._recent_starts)


def _sample(stats: ModelStats, record: ModelRecord | None, totals: Totals, before: Totals) -> Sample:
    workers = (math.nan,) * 3 if record is None else (record.desired, record.ready, record.starting)
    work_s = math.nan if stats.backlog_work_s is None else stats.backlog_work_s
    return Sample(
        (stats.queued, stats.running, work_s, *workers),
        [after - earlier for after, earlier in zip(totals.counts, before.counts, strict=True)],
        [after - earlier for after, earlier in zip(totals.waits, before.waits, strict=True)],
    )


def _event(name: str, body: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(body))
