"""The simulation: arrivals, cluster events and the scaling agent on one clock.

The agent ticks when the live controller would have new information. That is at its regular tick and immediately after a
crash. It also ticks at the next poll if its last plan is incomplete, or if queued tasks make a tick urgent.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import NamedTuple

from configs.scaling import Scaling
from controller.simulator.agents import ScalingAgent, ScalingTarget
from controller.simulator.cluster import SimCluster
from controller.simulator.model_sim import ModelSim
from controller.types import Activate, Drain, Kill, Observation, Queue, Start
from host.types import WorkerProcess

#: The mean work of a request is taken over this number of arrivals.
_MEAN_OVER = 200
#: The simulation ends this long after the last arrival even if tasks are queued.
_MAX_OVERTIME_S = 3600.0


class ModelSample(NamedTuple):
    """State of one model at one time, for plots."""

    at: float
    arrived: int
    desired: int
    ready: int
    starting: int
    oldest_wait_s: float
    remaining_s: float


@dataclass(slots=True)
class SimulationResult:
    """Final state of a simulation, with samples and, by model, the number of ticks that started or drained workers."""

    models: Mapping[str, ModelSim]
    samples: dict[str, list[ModelSample]]
    changes: dict[str, int] = field(default_factory=dict)


def observe(
    model: ModelSim, scaling: Scaling, now: float, *, sizes_known: bool = True, start_unix_s: float = 0.0
) -> Observation:
    """Return the model as the live controller would observe it; `start_unix_s` is the Unix time of `now` = 0."""
    tail, times, profile = model.tail, model.times, model.profile
    first = max(tail - _MEAN_OVER, 0)
    mean_s = (model.sums[tail] - model.sums[first]) / (tail - first) if tail else None
    queued, running, oldest = model.queued, model.running, model.oldest_arrival()
    if not sizes_known:
        mean_s = (model.finished_s / model.done) if model.done else None
    work_s = model.advance_work(now) if sizes_known or mean_s is None else (queued + running) * mean_s
    long_s = 0.0
    if sizes_known and queued:  # without queued tasks nothing depends on it
        most_s = scaling.effective_drain_s / profile.slowdowns[-1]
        long_s = sum(worker.work_beyond(most_s, now) for worker in model.workers.values())
    since = now - scaling.reported_arrivals_s
    buckets = model.buckets[bisect_right(model.buckets, since, key=itemgetter(0)) :]
    if not sizes_known:
        buckets = [bucket._replace(work_s=0.0, largest_s=0.0) for bucket in buckets]
    queue = Queue(
        queued=queued,
        running=running,
        batch_cap=profile.batch,
        batch_slowdown=profile.slowdowns[-1],
        backlog_work_s=work_s,
        long_work_s=long_s,
        mean_work_s=mean_s,
        arrivals_short_window=tail - bisect_right(times, now - scaling.look_back_period_s, 0, tail),
        arrivals_long_window=tail - bisect_right(times, now - scaling.rate_window_s, 0, tail),
        recent_arrivals=buckets,
        started_total=model.started,
        started_late_total=model.late,
        unstarted_late_total=model.expired,
        oldest_wait_s=now - oldest if oldest is not None else 0.0,
        uptime_s=now,
    )
    replicas = [worker.as_replica() for worker in model.workers.values()]
    return Observation(profile.model, queue, replicas, spares=_observed_spares(model, now), unix_s=start_unix_s + now)


def _observed_spares(model: ModelSim, now: float) -> list[WorkerProcess]:
    """Return the standby processes; the simulator does not reveal the remaining start-up time."""
    return [
        child if (child.loaded_at or now) <= now else replace(child, loaded_at=None) for child in model.spares.values()
    ]


def ignore_progress(progress: float) -> None:
    """Accept a progress report and do nothing."""
    del progress


class Simulation:
    """One run of an agent over the traffic of a cluster."""

    def __init__(
        self,
        cluster: SimCluster,
        agent: ScalingAgent,
        targets: Mapping[str, ScalingTarget],
        *,
        sample_s: float = 60.0,
        sizes_known: bool = True,
        poll_interval_s: float = 1.0,
        start_unix_s: float = 0.0,
    ) -> None:
        """`sample_s` is the time between two samples; infinity takes none after the first.

        The simulation begins at the Unix time `start_unix_s`.
        """
        self._cluster = cluster
        self._agent = agent
        self._targets = targets
        self._sample_s = sample_s
        self._sizes_known = sizes_known
        self._poll_interval_s = poll_interval_s
        self._start_unix_s = start_unix_s
        #: Whether the last tick left a part of its plan undone.
        self._is_incomplete = True
        self._poll_at = 0.0
        models = cluster.models
        self._result = SimulationResult(models, {name: [] for name in models}, dict.fromkeys(models, 0))

    def run(self, until: float = 0.0, on_progress: Callable[[float], None] = ignore_progress) -> SimulationResult:
        """Run until every request is served and at least to `until`. `on_progress` receives the simulated time."""
        cluster, arrivals = self._cluster, self._arrivals()
        self._start_initial_workers()
        arrival_at, model = next(arrivals, (math.inf, None))
        sample_at, now, previous = 0.0, 0.0, 0.0
        deadline = math.inf
        while True:
            event_at = cluster.next_at
            previous, now = now, min(event_at, arrival_at, self._poll_at, sample_at)
            if model is None and self._is_finished(now, until, deadline):
                break
            if event_at <= now:
                cluster.step()
                if cluster.take_changed():
                    self._on_cluster_change(now)
            elif arrival_at <= now and model is not None:
                cluster.arrive(model)
                if model.head < model.tail:
                    self._poll_at = min(self._poll_at, self._next_poll(now))
                arrival_at, model = next(arrivals, (math.inf, None))
                deadline = now + _MAX_OVERTIME_S if model is None else math.inf
            elif self._poll_at <= now:
                self._poll(now)
            else:
                self._sample(now)
                on_progress(now)
                sample_at = now + self._sample_s
        self._charge_workers(max(previous, until))
        return self._result

    def _start_initial_workers(self) -> None:
        for name, target in self._targets.items():
            for slot in target.slots[: target.initial_workers]:
                self._cluster.start(name, self._free_slot(target) or slot, 0.0, ready=True)
        self._cluster.take_changed()

    def _free_slot(self, target: ScalingTarget) -> str | None:
        free = Counter(target.slots)
        free.subtract(worker.process.device for worker in self._cluster.workers.values())
        return next((slot for slot in target.slots if free[slot] > 0), None)

    def _arrivals(self) -> Iterator[tuple[float, ModelSim]]:
        each = [zip(model.times, itertools.repeat(model)) for model in self._cluster.models.values()]
        return heapq.merge(*each, key=lambda pair: pair[0]) if len(each) > 1 else iter(each[0])

    def _is_finished(self, now: float, until: float, deadline: float) -> bool:
        is_served = all(model.done == len(model.times) for model in self._cluster.models.values())
        return (is_served and now > until) or now > max(deadline, until)

    # ---- the controller

    def _next_poll(self, now: float) -> float:
        return (now // self._poll_interval_s + 1) * self._poll_interval_s

    def _on_cluster_change(self, now: float) -> None:
        """Poll immediately after a crash, and at the next interval if the last plan is incomplete."""
        has_crashes = self._cluster.has_crashes
        if has_crashes or self._is_incomplete:
            self._poll_at = min(self._poll_at, now if has_crashes else self._next_poll(now))

    def _poll(self, now: float) -> None:
        cluster, agent, interval_s = self._cluster, self._agent, self._poll_interval_s
        waiting = [name for name, model in cluster.models.items() if model.queued]
        if (
            cluster.has_exits
            or self._is_incomplete
            or now >= agent.next_tick_at()
            or agent.is_urgent(waiting, self._observer(now), now)
        ):
            self._tick(now)
        if self._is_incomplete or any(model.queued for model in cluster.models.values()):
            self._poll_at = self._next_poll(now)
        else:
            self._poll_at = max(math.ceil(agent.next_tick_at() / interval_s) * interval_s, self._next_poll(now))
        cluster.take_changed()

    def _tick(self, now: float) -> None:
        """Run the agent and carry out its plan."""
        cluster, agent = self._cluster, self._agent
        for ended in cluster.take_exits():
            agent.on_worker_exit(ended)
        agent.observe_machines(cluster.machines.at(now))
        plan = agent.tick(self._observer(now), now).plan
        changed_models = set()
        for action in plan.actions:
            match action:
                case Start(model, kind, _, standby=True):
                    cluster.start_spare(model, kind, now)
                case Start(model, device, _):
                    cluster.start(model, device, now)
                    changed_models.add(model)
                case Activate(spare, model, device, _):
                    cluster.activate(spare, model, device, now)
                    changed_models.add(model)
                case Drain(worker, _):
                    if worker in cluster.workers:
                        changed_models.add(cluster.workers[worker].process.model)
                    cluster.drain(worker, now)
                case Kill(worker, _):
                    cluster.kill(worker, now)
        for model in changed_models:
            self._result.changes[model] += 1
        # A later poll may carry out what this plan could not.
        self._is_incomplete = bool(plan.blocked) or self._has_pending_spares(now)

    def _has_pending_spares(self, now: float) -> bool:
        """Return whether a standby process is missing or still loading."""
        for name, target in self._targets.items():
            spares = self._cluster.models[name].spares.values()
            if len(spares) < target.scaling.standby or any((child.loaded_at or now) > now for child in spares):
                return True
        return False

    def _observer(self, now: float) -> Callable[[str], Observation]:
        models, targets, sizes_known = self._cluster.models, self._targets, self._sizes_known
        start_unix_s = self._start_unix_s
        return lambda name: observe(
            models[name], targets[name].scaling, now, sizes_known=sizes_known, start_unix_s=start_unix_s
        )

    def _sample(self, now: float) -> None:
        for name, model in self._cluster.models.items():
            oldest = model.oldest_arrival()
            wait_s = now - oldest if oldest is not None else 0.0
            desired, work_s = self._agent.desired_workers(name), model.advance_work(now)
            self._result.samples[name].append(
                ModelSample(now, model.tail, desired, model.ready, model.starting, wait_s, work_s)
            )

    def _charge_workers(self, end: float) -> None:
        """Charge the time of the workers that are still running."""
        for worker in self._cluster.workers.values():
            worker.model.worker_s += end - worker.process.started_at
