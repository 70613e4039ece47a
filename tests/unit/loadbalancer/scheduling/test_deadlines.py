"""Tasks that cannot finish in time expire before they start, and no others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.sections import Queue
from loadbalancer.scheduling.cost_model import CostModel
from loadbalancer.scheduling.deadlines import cannot_finish_in_time
from loadbalancer.scheduling.events import Effect, TasksSubmitted, Tick
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Checkpoint, QueueFull, Task, TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.scheduling.worker_pool import Worker
from tests.support.scheduler import IMAGE, INPUTS, PNG, assignments, connect, new_scheduler, receive, task, updates
from wire.inputs import Shape
from wire.messages import PROTOCOL, Capacity, Finished, Heartbeat, Hello, Progress, Started, StepCurve

SIZE = Shape("64x64", 4096)
#: Seconds of a step by tasks in the batch.
POINTS = [(1, 0.025), (2, 0.03), (4, 0.04)]
BEAT = Heartbeat(running=0, curves=[StepCurve(SIZE, 4, POINTS)])
BATCH, STEPS = 4, INPUTS.steps
#: Images per second in full batches.
CAPACITY = BATCH / (STEPS * dict(POINTS)[BATCH])


def worker(*, measured: bool = True) -> Worker:
    made = Worker(Hello(PROTOCOL, "w", "m", "sim:0", 1), 0.0, slots=BATCH)
    if measured:
        made.on_heartbeat(BEAT, 0.0)
    return made


class Machine:
    """A worker in simulated time: a step takes `slower` times its measured time."""

    def __init__(self, slack: float | None, slower: float = 1.0, timeout_s: float = 4.0) -> None:
        self.core = new_scheduler(Queue(max_tasks=10_000, deadline_slack=slack))
        self.now, self.slower, self.timeout_s = 0.0, slower, timeout_s
        self.batch: dict[str, tuple[int, int]] = {}
        self.started: set[str] = set()
        self.ends: dict[str, TaskState] = {}
        self.done = self.asked = self.refused = 0
        self.apply(connect(self.core, "w", BATCH))
        self.apply(receive(self.core, "w", BEAT))
        self.apply(self.core.handle(Tick(), 0.0))

    def apply(self, effects: Sequence[Effect]) -> None:
        for _, order in assignments(list(effects)):
            assert self.core.tasks[order.task].deadline > self.now
            self.started.add(order.task)
            self.batch[order.task] = (order.attempt, 0)
            self.apply(receive(self.core, "w", Started(order.task, order.attempt), self.now))
        for update in updates(list(effects)):
            if isinstance(update, TaskEnded):
                self.ends[update.task] = update.state
                if update.task in self.batch:
                    attempt, _ = self.batch.pop(update.task)
                    self.apply(receive(self.core, "w", Finished(update.task, attempt, IMAGE), self.now))

    def step(self) -> None:
        self.now += self.slower * worker().step_times.batch_step_s(SIZE, max(len(self.batch), 1))
        self.apply(self.core.handle(Tick(), self.now))
        for name, (attempt, step) in list(self.batch.items()):
            if name not in self.batch:
                continue
            self.batch[name] = (attempt, step + 1)
            if step + 1 == STEPS:
                del self.batch[name]
                self.done += self.core.tasks[name].deadline >= self.now
                self.apply(receive(self.core, "w", Finished(name, attempt, IMAGE), self.now, (PNG,)))
            else:
                self.apply(receive(self.core, "w", Progress(name, attempt, step + 1, STEPS), self.now))

    def run(self, seconds: float, load: float) -> None:
        """Submit tasks at `load` times the capacity of the worker."""
        while self.now < seconds:
            while self.asked < self.now * load * CAPACITY:
                self.asked += 1
                try:
                    one = task(f"t{self.asked:05}", self.now, timeout_s=self.timeout_s)
                    self.apply(self.core.handle(TasksSubmitted([one]), self.now))
                except QueueFull:
                    self.refused += 1
            self.step()


@pytest.mark.parametrize("slack", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("slower", [1.0, 1.05, 1.5])
def test_overload_started_tasks_finish_in_time(slack: float, slower: float) -> None:
    machine = Machine(slack, slower)
    machine.run(30.0, 10.0)
    assert machine.refused > 100
    assert len(machine.started) > 0.8 * 30.0 * CAPACITY / slower, "the worker was busy all the time"
    left = len(machine.started) - machine.done - len(machine.batch)
    # A worker that is slower than measured corrects the costs with its first images.
    assert left <= (0 if slower < 1.1 else 2 * BATCH)
    assert TaskState.EXPIRED in machine.ends.values(), "late tasks have expired"


def test_overload_without_slack_finishes_late() -> None:
    machine = Machine(None)
    machine.run(30.0, 10.0)
    assert machine.done < 0.3 * len(machine.started)


def test_long_deadlines_expire_nothing() -> None:
    machine = Machine(1.5, timeout_s=60.0)
    machine.run(20.0, 0.9)
    assert not machine.ends
    assert machine.done >= len(machine.started) - BATCH


def waiting(*tasks: Task) -> Scheduler:
    """A scheduler with tasks that came while no worker was connected, and with one worker that has no slots yet."""
    core = new_scheduler(Queue(deadline_slack=1.5))
    for one in tasks:
        core.handle(TasksSubmitted([one]), 0.0)
    connect(core, "w", 0)
    receive(core, "w", BEAT)
    return core


def test_late_tasks_expire_for_those_behind_them() -> None:
    late = [task(f"late{number}", timeout_s=0.4) for number in range(3)]
    core = waiting(*late, task("last", 0.1))
    effects = receive(core, "w", Capacity(1), 0.2)
    assert [given.task for _, given in assignments(effects)] == ["last"]
    ends = [update for update in updates(effects) if isinstance(update, TaskEnded)]
    assert [(end.task, end.state) for end in ends] == [(one.id, TaskState.EXPIRED) for one in late]
    assert ends[0].message == "not started 0.2 s after it arrived: it has 0.2 s left, and takes longer"
    assert core.counters["expired"] == 3


def test_idle_worker_starts_a_late_task_without_others() -> None:
    core = waiting(task("late", timeout_s=0.4))
    assert [given.task for _, given in assignments(receive(core, "w", Capacity(1), 0.2))] == ["late"]


def test_remaining_steps_decide_lateness() -> None:
    new, far = task("a new one", timeout_s=0.2), task("far", timeout_s=0.2)
    far.resume_from(Checkpoint(STEPS - 2, STEPS, (b"state",)))
    core = waiting(new, far, task("patient", 0.1))
    assert [given.task for _, given in assignments(receive(core, "w", Capacity(1)))] == ["far"]
    assert set(core.tasks) == {"far", "patient"}


def beside_a_slow_one(core: Scheduler) -> None:
    """Add a second worker, ten times slower; both have slots from the next event on."""
    connect(core, "a slow one", 0)
    slow = StepCurve(SIZE, 4, [(tasks, 10 * seconds) for tasks, seconds in POINTS])
    receive(core, "a slow one", Heartbeat(running=0, curves=[slow]))
    for each in core.registry:
        each.slots, each.draining = 1, False


def test_task_goes_to_the_worker_that_is_fast_enough() -> None:
    core = waiting(task("a short one", timeout_s=1.0), task("patient", 0.1), task("patient too", 0.1))
    beside_a_slow_one(core)
    placed = {given.task: worker for worker, given in assignments(core.handle(Tick(), 0.1))}
    assert placed == {"a short one": "w", "patient": "a slow one"}


def test_slow_worker_does_not_expire_a_feasible_task() -> None:
    core = waiting(task("first", -0.1), *(task(f"short{number}", timeout_s=2.0) for number in range(4)))
    beside_a_slow_one(core)
    effects = core.handle(Tick(), 0.1)
    assert not [update for update in updates(effects) if isinstance(update, TaskEnded)]
    assert core.queues["m"].count == 3


@given(
    steps=st.integers(1, 200),
    beside=st.integers(0, BATCH - 1),
    has_s=st.floats(-1.0, 20.0),
    slack=st.one_of(st.none(), st.floats(1.0, 4.0)),
    crowded=st.booleans(),
    measured=st.booleans(),
)
def test_only_measured_costs_expire_a_task(
    steps: int, beside: int, has_s: float, slack: float | None, crowded: bool, measured: bool
) -> None:
    one, place = task("t", timeout_s=has_s), worker(measured=measured)
    one.steps = steps
    expires = cannot_finish_in_time(one, place, beside, CostModel(), crowded=crowded, slack=slack, now=0.0)
    takes_s = steps * place.step_times.batch_step_s(SIZE, beside + 1)
    if has_s <= 0:
        assert expires
    elif slack is None or not measured or takes_s * 1.2 < has_s or (not crowded and takes_s < has_s):
        assert not expires
    elif crowded and takes_s > has_s:
        assert expires
    if not crowded and beside == 0 and has_s > 0:
        assert not expires, "an idle worker starts any task"


def test_one_slow_image_does_not_expire_the_next_ones() -> None:
    costs, place = CostModel(), worker()
    costs.update([place])
    costs.on_start("slow", place, 0.0)
    costs.on_stop("slow", 60.0, (SIZE, STEPS))
    takes_s = STEPS * place.step_times.batch_step_s(SIZE, 1)
    enough = task("t", timeout_s=2.5 * takes_s)
    assert not cannot_finish_in_time(enough, place, 0, costs, crowded=True, slack=1.5, now=0.0)
    short = task("t", timeout_s=1.5 * takes_s)
    assert cannot_finish_in_time(short, place, 0, costs, crowded=True, slack=1.5, now=0.0)
