"""What became of one model's tasks since the start, and how many have come lately, for scaling and `/metrics`. Pure.

A task counts against the promise `slo.max_wait_s` when a worker starts it: in time or late. One that ends without a
start is late as well, unless its client left before the promise was broken. The promise is read at the start of the
balancer, so a histogram never mixes two of them.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Literal, NamedTuple, get_args

from configs.scaling import Scaling
from loadbalancer.scheduling.cost_model import CostModel
from loadbalancer.scheduling.histogram import FOLD_EVERY, SECONDS, Histogram, merged
from loadbalancer.scheduling.owner_usage import OUTCOMES, OwnerStatistics
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.scheduling.waiting_times import WaitingTimes
from wire.inputs import CallInputs, ImageInputs, Shape, TextInputs
from wire.messages import StartupTimes
from wire.snapshot import ArrivalBucket

#: Rates are means over this many seconds.
WINDOW_S = 60.0
#: Number of arrivals that the mean work covers.
_MEAN_OVER_ARRIVALS = 200
#: Upper bounds of the time of one step in seconds.
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
#: Of the start of a worker.
START_SECONDS = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_DONE = TaskState.DONE  # Python 3.11 takes long to find a member of an enumeration by its name
PHASES = ("spawn", "import", "load", "device", "warm_up")
#: Why a task went back to the queue.
MoveCause = Literal["preempted", "worker_lost", "invalid_result", "reconnected"]

_KINDS: dict[type, str] = {ImageInputs: "image", CallInputs: "call", TextInputs: "text"}
#: Workers whose start is remembered, so that one that connects again is not counted again.
_MAX_REMEMBERED = 1000


class SlidingWindow:
    """Counts events and their work over the last `span_s` seconds, in buckets of one second, which bound its memory."""

    def __init__(self, span_s: float = WINDOW_S) -> None:
        self._span_s = span_s
        #: Second of the clock, events, their work in seconds, and the largest work of one.
        self._buckets: deque[list[float]] = deque(maxlen=int(span_s) + 2)
        self._latest: list[float] = [-math.inf, 0, 0.0, 0.0]

    def __repr__(self) -> str:
        return f"<SlidingWindow of {self._span_s:g} s, {len(self._buckets)} buckets>"

    def add(self, count: int, now: float, work_s: float = 0.0) -> None:
        """Count `count` events of so much work each."""
        second, latest = now // 1.0, self._latest
        if latest[0] == second:
            latest[1] += count
            latest[2] += count * work_s
            if work_s > latest[3]:
                latest[3] = work_s
        else:
            self._latest = [second, count, count * work_s, work_s]
            self._buckets.append(self._latest)

    def count(self, now: float, span_s: float | None = None) -> int:
        """Return the events of the last seconds, of all that are counted or of fewer, exact to a second."""
        after = now - (self._span_s if span_s is None else span_s)
        return int(sum(bucket[1] for bucket in self._buckets if bucket[0] > after))

    def rate(self, now: float, span_s: float | None = None) -> float:
        """Return the events per second."""
        return self.count(now, span_s) / (self._span_s if span_s is None else span_s)

    def arrivals(self, now: float, uptime_s: float, span_s: float) -> tuple[ArrivalBucket, ...]:
        """Return the last seconds one by one, as the seconds of the uptime in which all their events are past."""
        started = now - uptime_s
        return tuple(
            ArrivalBucket(math.ceil(second - started), int(count), round(work_s, 3), round(largest_s, 3))
            for second, count, work_s, largest_s in self._buckets
            if second > now - span_s
        )


class Totals(NamedTuple):
    """Counts since the start."""

    #: Requested tasks, finished tasks, and generated tokens.
    counts: tuple[int, int, int]
    #: Started tasks by waiting time, see `waiting_times`.
    waits: tuple[int, ...]


class ModelStatistics:
    """Histograms and counters of one model's tasks and worker starts."""

    def __init__(self, model: str, config: Scaling, owners: OwnerStatistics) -> None:
        """`owners` is shared by all models."""
        self._model, self._config, self._owners = model, config, owners
        self._find_usage = owners.of_model(model).get
        self._reported_s = config.reported_arrivals_s
        spans = WINDOW_S, config.look_back_period_s, config.rate_window_s, self._reported_s
        self._arrivals, self._completions = SlidingWindow(max(spans)), SlidingWindow()
        self._latest: deque[tuple[Shape, int]] = deque(maxlen=_MEAN_OVER_ARRIVALS)
        #: Requested tasks, finished tasks, and generated tokens since the start.
        self.arrived_total = self.completed_total = self.tokens_total = 0
        #: Tasks that another server was asked for, and those of them that it has not answered yet.
        self.proxied_total = self.proxied_in_flight = 0
        #: Of the tasks that were started for the first time.
        self.waits = WaitingTimes(config.slo.max_wait_s)
        #: A worker has started the task for the first time, which has waited for so many seconds.
        self.on_start = self.waits.observe
        self.max_wait_s, self.drain_s = self.waits.max_wait_s, config.effective_drain_s
        #: Seconds from arrival to the assignment to a worker.
        self.time_in_queue = Histogram(merged(SECONDS, (self.max_wait_s,)))
        #: Seconds from arrival to the first preview.
        self.first_preview = Histogram(SECONDS)
        #: Seconds of finished tasks: of those of several steps, of a step of them, and of those of one step, as calls.
        self._run, self._step = Histogram(SECONDS), Histogram(STEP_SECONDS)
        self._single_step = Histogram(merged(SECONDS, STEP_SECONDS))
        #: Tasks that have ended without a start, and have not kept the promise.
        self.unstarted_late = 0
        #: Ended tasks by the type of their inputs, and by outcome. All outcomes begin with 0.
        self._ended = {inputs: dict.fromkeys(OUTCOMES, 0) for inputs in _KINDS}
        # Counters of incidents begin with 0: the first incident is then an increase.
        #: Tasks that were not queued, by reason.
        self.refused: Counter[str] = Counter(queue_full=0, deadline_unreachable=0)
        #: Tasks that left a worker before their end, by cause.
        self.moves: Counter[str] = Counter(dict.fromkeys(get_args(MoveCause), 0))
        self.steps_redone = 0
        #: Seconds of the starts of workers, and their sum by phase; cold ones and those from standby.
        self.cold_start, self.standby_start = Histogram(START_SECONDS), Histogram(START_SECONDS)
        self.start_phases: Counter[tuple[bool, str]] = Counter()
        self._started_pids: dict[str, int] = {}

    # ---- changes

    def on_arrival(self, shape: Shape, steps: int, count: int, now: float, work_s: float | None = None) -> None:
        """Count the arrival of `count` tasks of this shape in so many steps, and of so much work, each."""
        self._arrivals.add(count, now, work_s or 0.0)
        self.arrived_total += count
        if count == 1:
            self._latest.append((shape, steps))
        else:
            self._latest.extend([(shape, steps)] * min(count, _MEAN_OVER_ARRIVALS))

    def on_proxied(self, shape: Shape, steps: int, count: int, now: float, work_s: float | None = None) -> None:
        self.on_arrival(shape, steps, count, now, work_s)
        self.proxied_total += count
        self.proxied_in_flight += count

    def on_proxy_finished(self, count: int) -> None:
        self.proxied_in_flight -= count

    def on_preview(self, task: Task, now: float) -> None:
        """Note a preview; only the first one of a task counts."""
        if task.previews == 1:
            self.first_preview.observe(now - task.created)

    def on_move(self, cause: MoveCause, steps_redone: int) -> None:
        self.moves[cause] += 1
        self.steps_redone += steps_redone

    def on_end(self, task: Task, now: float) -> None:
        """Count a task that has ended, with its work."""
        state, inputs, started = task.state, type(task.inputs), task.first_started
        ended = self._ended[inputs]
        ended[state] = count = ended[state] + 1
        usage = self._find_usage(task.owner) or self._owners.add(self._model, task.owner)
        usage.ended[state] += 1
        usage.work_s += task.work_s
        if task.tokens:
            usage.tokens += len(task.tokens)
        if started is None:
            self.unstarted_late += state is not TaskState.CANCELLED or now - task.created > self.max_wait_s
        elif state is _DONE:
            self._completions.add(1, now)
            self.completed_total += 1
            run_s = now - started
            if inputs is TextInputs:
                self._run.observe(run_s)
            elif task.steps == 1:
                self._single_step.observe(run_s)
            else:
                self._run.observe(run_s)
                self._step.observe(run_s / task.steps)
        if not count % FOLD_EVERY:
            self._fold()

    def _fold(self) -> None:
        """Count what is new. There is at most one value per task."""
        for each in (self.waits, self.time_in_queue, self.first_preview, self._run, self._step, self._single_step):
            each.fold()

    def on_worker_start(self, worker: str, pid: int, start: StartupTimes) -> None:
        """Count the start of a worker, each process once."""
        if self._started_pids.get(worker) == pid or not start.total_s:
            return
        if len(self._started_pids) >= _MAX_REMEMBERED:
            del self._started_pids[next(iter(self._started_pids))]
        self._started_pids[worker] = pid
        (self.standby_start if start.standby else self.cold_start).observe(start.total_s)
        for phase in PHASES:
            self.start_phases[start.standby, phase] += getattr(start, f"{phase}_s")

    # ---- questions

    def arrival_rate(self, now: float) -> float:
        return self._arrivals.rate(now, WINDOW_S)

    def service_rate(self, now: float) -> float:
        return self._completions.rate(now)

    def arrivals_short_window(self, now: float) -> int:
        return self._arrivals.count(now, self._config.look_back_period_s)

    def arrivals_long_window(self, now: float) -> int:
        return self._arrivals.count(now, self._config.rate_window_s)

    def recent_arrivals(self, now: float, uptime_s: float) -> tuple[ArrivalBucket, ...]:
        return self._arrivals.arrivals(now, uptime_s, self._reported_s)

    def totals(self) -> Totals:
        return Totals((self.arrived_total, self.completed_total, self.tokens_total), self.waits.buckets())

    def mean_work_s(self, costs: CostModel) -> float | None:
        """Return the mean work of the latest tasks in seconds; None if unknown."""
        seconds = [costs.work_s(shape, steps) for shape, steps in self._latest]
        known = [each for each in seconds if each is not None]
        return sum(known) / len(known) if known and len(known) == len(seconds) else None

    @property
    def queue_wait(self) -> Histogram:
        """Seconds from arrival to the first step."""
        return self.waits.exported()

    @property
    def run(self) -> Histogram:
        """Seconds from the first step to the result of finished tasks."""
        return self._single_step.coarser(SECONDS).plus(self._run)

    @property
    def step(self) -> Histogram:
        """Mean seconds of a step of finished tasks that generate no text."""
        return self._single_step.coarser(STEP_SECONDS).plus(self._step)

    @property
    def in_time(self) -> int:
        """Tasks that kept the promise."""
        return self.waits.in_time

    @property
    def late(self) -> int:
        """Tasks that did not."""
        return self.waits.count - self.waits.in_time + self.unstarted_late

    @property
    def ended(self) -> Counter[tuple[str, str]]:
        """Ended tasks by kind and outcome."""
        own = ((_KINDS[inputs], counts) for inputs, counts in self._ended.items() if any(counts.values()))
        return Counter({(kind, outcome.value): count for kind, counts in own for outcome, count in counts.items()})
