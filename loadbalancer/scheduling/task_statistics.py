"""What became of tasks since the start, by model and by owner, for `/metrics`. Pure.

A task counts against the promise `slo.max_wait_s` when a worker starts it: in time or late. One that ends without a
start is late as well, unless its client left before the promise was broken. The promise is read at the start of the
balancer, so a histogram never mixes two of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, get_args

from loadbalancer.scheduling.task import Task, TaskState
from wire.inputs import CallInputs, ImageInputs, TextInputs
from wire.messages import StartupTimes

#: Upper bounds of waiting and running times in seconds.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
#: Of the time of one step.
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
#: Of the start of a worker.
START_SECONDS = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
OUTCOMES = (TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED)
_DONE = TaskState.DONE  # Python 3.11 takes long to find a member of an enumeration by its name
PHASES = ("spawn", "import", "load", "device", "warm_up")
#: Why a task went back to the queue.
MoveCause = Literal["preempted", "worker_lost", "invalid_result", "reconnected"]

_KINDS: dict[type, str] = {ImageInputs: "image", CallInputs: "call", TextInputs: "text"}
#: Workers whose start is remembered, so that one that connects again is not counted again.
_MAX_REMEMBERED = 1000
#: Owners are the names of API keys, of which there may be many in time. Those beyond this number of pairs of model and
#: owner are counted together.
MAX_PAIRS = 2000
#: No API key has this name.
REMAINDER = "(others)"


class Histogram:
    """Counts values by the smallest bound that they do not exceed. For the event loop only.

    Those of prometheus_client take a lock per bucket, counter and sum, because threads may share them: together a tenth
    of the time of a request.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are in ascending order."""
        self._bounds = tuple(map(float, bounds))  # a float is compared with an integer slowly
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def bounds(self) -> Sequence[float]:
        return self._bounds

    @property
    def sum(self) -> float:
        """The sum of all values."""
        return self._sum

    def cumulative(self) -> Iterator[int]:
        """Yield the number of values up to each bound, then the number of all values."""
        return accumulate(self._counts)


def bounds_with(bounds: Sequence[float], value: float) -> tuple[float, ...]:
    """Return the bounds with one more, so that the values up to it are counted exactly."""
    return tuple(sorted({*map(float, bounds), float(value)}))


class OwnerUsage:
    """What one owner has used of one model."""

    __slots__ = ("ended", "tokens", "work_s")

    def __init__(self) -> None:
        #: Seconds of work that workers spent on its tasks, as if each ran in a batch of one.
        self.work_s = 0.0
        #: Generated tokens.
        self.tokens = 0
        #: Ended tasks by outcome. A plain dictionary: those of `collections` add twice as slowly.
        self.ended: dict[str, int] = {}


class OwnerStatistics:
    """The use of all owners."""

    def __init__(self) -> None:
        self._usage: dict[tuple[str, str], OwnerUsage] = {}

    @property
    def usage(self) -> Mapping[tuple[str, str], OwnerUsage]:
        """The use by model and owner."""
        return self._usage

    def on_end(self, model: str, owner: str, outcome: str, work_s: float, tokens: int) -> None:
        """Count an ended task."""
        usage = self._usage.get((model, owner))
        if usage is None:
            owner = owner if len(self._usage) < MAX_PAIRS else REMAINDER
            usage = self._usage.setdefault((model, owner), OwnerUsage())
        usage.work_s += work_s
        usage.tokens += tokens
        ended = usage.ended
        ended[outcome] = ended.get(outcome, 0) + 1


class ModelStatistics:
    """Histograms and counters of one model's tasks and worker starts."""

    def __init__(self, model: str, max_wait_s: float, owners: OwnerStatistics) -> None:
        """`owners` is shared by all models."""
        self._model, self._owners = model, owners
        self.max_wait_s = max_wait_s
        bounds = bounds_with(SECONDS, max_wait_s)
        #: Seconds from arrival to the assignment to a worker, and to the first step.
        self.time_in_queue, self.queue_wait = Histogram(bounds), Histogram(bounds)
        #: Seconds from arrival to the first preview.
        self.first_preview = Histogram(SECONDS)
        #: Seconds from the first step to the result of finished tasks, and per step of those that generate no text.
        self.run, self.step = Histogram(SECONDS), Histogram(STEP_SECONDS)
        #: Tasks that kept the promise, and tasks that did not.
        self.in_time = self.late = 0
        #: Ended tasks by the type of their inputs, and by outcome.
        self._ended: dict[type, dict[TaskState, int]] = {}
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

    @property
    def ended(self) -> Counter[tuple[str, str]]:
        """Ended tasks by kind and outcome."""
        own = ((_KINDS[inputs], counts) for inputs, counts in self._ended.items())
        return Counter({(kind, outcome.value): count for kind, counts in own for outcome, count in counts.items()})

    def on_start(self, waited_s: float) -> None:
        """A worker has started the task for the first time."""
        self.queue_wait.observe(waited_s)
        if waited_s <= self.max_wait_s:
            self.in_time += 1
        else:
            self.late += 1

    def on_preview(self, task: Task, now: float) -> None:
        """Note a preview; only the first one of a task counts."""
        if task.previews == 1:
            self.first_preview.observe(now - task.created)

    def on_move(self, cause: MoveCause, steps_redone: int) -> None:
        self.moves[cause] += 1
        self.steps_redone += steps_redone

    def on_end(self, task: Task, now: float) -> None:
        """Count a task that has ended, with its work."""
        state, inputs = task.state, type(task.inputs)
        ended = self._ended.get(inputs)
        if ended is None:  # the other outcomes begin with 0
            ended = self._ended[inputs] = dict.fromkeys(OUTCOMES, 0)
        ended[state] += 1
        self._owners.on_end(self._model, task.owner, state, task.work_s, len(task.tokens))
        started = task.first_started
        if started is None:
            self.late += state is not TaskState.CANCELLED or now - task.created > self.max_wait_s
        elif state is _DONE:
            run_s, steps = now - started, task.steps
            self.run.observe(run_s)
            if inputs is not TextInputs:
                self.step.observe(run_s / steps if steps > 1 else run_s)

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
