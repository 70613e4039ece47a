"""What became of tasks since the start, by model and by owner, for `/metrics`. Pure.

A task counts against the promise `slo.max_wait_s` when a worker starts it: in time or late. One that ends without a
start is late as well, unless its client left before the promise was broken. The promise is read at the start of the
balancer, so a histogram never mixes two of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Literal, get_args

from loadbalancer.scheduling.histogram import FOLD_EVERY, SECONDS, Histogram, merged
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.scheduling.waiting_times import WaitingTimes
from wire.inputs import CallInputs, ImageInputs, TextInputs
from wire.messages import StartupTimes

#: Upper bounds of the time of one step in seconds.
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


class OwnerUsage:
    """What one owner has used of one model."""

    __slots__ = ("ended", "tokens", "work_s")

    def __init__(self) -> None:
        #: Seconds of work that workers spent on its tasks, as if each ran in a batch of one.
        self.work_s = 0.0
        #: Generated tokens.
        self.tokens = 0
        #: Ended tasks by outcome. A plain dictionary: those of `collections` add twice as slowly.
        self.ended: dict[TaskState, int] = dict.fromkeys(OUTCOMES, 0)


class OwnerStatistics:
    """The use of all owners."""

    def __init__(self) -> None:
        self._models: defaultdict[str, dict[str, OwnerUsage]] = defaultdict(dict)
        self._pairs = 0

    @property
    def usage(self) -> Mapping[tuple[str, str], OwnerUsage]:
        """The use by model and owner."""
        return {(model, owner): usage for model, own in self._models.items() for owner, usage in own.items()}

    def of_model(self, model: str) -> Mapping[str, OwnerUsage]:
        """Return the use of this model by owner, now and later."""
        return self._models[model]

    def add(self, model: str, owner: str) -> OwnerUsage:
        """Return where to count the use by an owner that has not used the model before."""
        self._pairs += 1
        return self._models[model].setdefault(owner if self._pairs <= MAX_PAIRS else REMAINDER, OwnerUsage())


class ModelStatistics:
    """Histograms and counters of one model's tasks and worker starts."""

    def __init__(self, model: str, waits: WaitingTimes, owners: OwnerStatistics) -> None:
        """`waits`: those of the tasks of this model. `owners` is shared by all models."""
        self._model, self._waits, self._owners = model, waits, owners
        self._find_usage = owners.of_model(model).get
        self.max_wait_s = waits.max_wait_s
        #: Seconds from arrival to the assignment to a worker.
        self.time_in_queue = Histogram(merged(SECONDS, (waits.max_wait_s,)))
        #: Seconds from arrival to the first preview.
        self.first_preview = Histogram(SECONDS)
        #: Seconds of finished tasks: of those of several steps, of a step of them, and of those of one step, as calls.
        self._run, self._step = Histogram(SECONDS), Histogram(STEP_SECONDS)
        self._single_step = Histogram(merged(SECONDS, STEP_SECONDS))
        #: Tasks that have ended without a start, and have not kept the promise.
        self._not_started = 0
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

    @property
    def queue_wait(self) -> Histogram:
        """Seconds from arrival to the first step."""
        return self._waits.exported()

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
        return self._waits.in_time

    @property
    def late(self) -> int:
        """Tasks that did not."""
        return self._waits.count - self._waits.in_time + self._not_started

    @property
    def ended(self) -> Counter[tuple[str, str]]:
        """Ended tasks by kind and outcome."""
        own = ((_KINDS[inputs], counts) for inputs, counts in self._ended.items() if any(counts.values()))
        return Counter({(kind, outcome.value): count for kind, counts in own for outcome, count in counts.items()})

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
            self._not_started += state is not TaskState.CANCELLED or now - task.created > self.max_wait_s
        elif state is _DONE:
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
        for each in (self._waits, self.time_in_queue, self.first_preview, self._run, self._step, self._single_step):
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
