"""What is counted of tasks, driven through the scheduler."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from configs.scaling import Scaling, Slo
from configs.sections import Queue
from loadbalancer.scheduling.events import TasksCancelled, TasksSubmitted, Tick, WorkerLost
from loadbalancer.scheduling.histogram import FOLD_EVERY, SECONDS, Histogram, merged
from loadbalancer.scheduling.owner_usage import MAX_PAIRS, REMAINDER
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import QueueFull
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.scheduling.waiting_times import WaitingTimes
from tests.support.scheduler import IMAGE, INPUTS, PNG, connect, new_scheduler, receive, task
from wire.messages import PROTOCOL, Failed, Finished, Hello, Preempted, Progress, Started, StartupTimes

PROMISE_S = 7.0


def scheduler(max_tasks: int = 100) -> Scheduler:
    return new_scheduler(Queue(max_tasks=max_tasks), scaling=Scaling(slo=Slo(max_wait_s=PROMISE_S)))


def counts(histogram: Histogram) -> dict[float, int]:
    """The number of values by bound, without zeros."""
    cumulative = list(histogram.cumulative())
    own = [count - before for count, before in zip(cumulative, [0, *cumulative], strict=False)]
    return {bound: count for bound, count in zip([*histogram.bounds, float("inf")], own, strict=True) if count}


@pytest.mark.parametrize(
    ("bounds", "value", "expected"),
    [((1, 2), 1.5, (1.0, 1.5, 2.0)), ((1, 2), 2.0, (1.0, 2.0)), ((1, 2), 9, (1.0, 2.0, 9.0))],
)
def test_promise_is_a_bound_of_its_own(bounds: tuple[float, ...], value: float, expected: tuple[float, ...]) -> None:
    assert merged(bounds, (value,)) == expected


@pytest.mark.parametrize(("started_at", "bucket", "kept"), [(7.0, 7.0, True), (7.001, 10.0, False)])
def test_start_counts_against_the_promise(started_at: float, bucket: float, kept: bool) -> None:
    core = scheduler()
    core.handle(TasksSubmitted([task("t")]), 0.0)
    connect(core, "w", 1, now=5.0)
    receive(core, "w", Started("t", 1), started_at)
    found = core.statistics["m"]
    assert (counts(found.time_in_queue), counts(found.queue_wait)) == ({5: 1}, {bucket: 1})
    assert (found.in_time, found.late) == (int(kept), int(not kept))


@pytest.mark.parametrize(
    ("ended_at", "expires", "late"),
    [(7.0, False, 0), (7.5, False, 1), (3.0, True, 1)],
    ids=["its client left in time", "its client waited for too long", "it has expired"],
)
def test_task_without_a_start(ended_at: float, expires: bool, late: int) -> None:
    core = scheduler()
    core.handle(TasksSubmitted([task("t", timeout_s=ended_at if expires else 99.0)]), 0.0)
    core.handle(Tick() if expires else TasksCancelled(["t"], "it left"), ended_at)
    found = core.statistics["m"]
    assert (found.in_time, found.late, found.queue_wait.sum) == (0, late, 0)
    assert core.snapshot(now=ended_at, wall_time=0.0, uptime_s=ended_at).models[0].unstarted_late_total == late
    assert +found.ended == {("image", "expired" if expires else "cancelled"): 1}


def test_finished_image_and_its_owner() -> None:
    core = scheduler()
    connect(core, "w", 1)
    core.handle(TasksSubmitted([task("t")]), 0.0)
    receive(core, "w", Started("t", 1), 0.5)
    receive(core, "w", Finished("t", 1, IMAGE), 4.5, (PNG,))
    found = core.statistics["m"]
    assert (counts(found.run), found.run.sum) == ({5: 1}, 4.0)
    assert (counts(found.step), found.step.sum) == ({0.25: 1}, 4.0 / INPUTS.steps)
    usage = core.owners.usage["m", "anonymous"]
    assert (+Counter(usage.ended), usage.work_s > 0) == ({"done": 1}, True)


def test_failed_task_has_no_running_time() -> None:
    core = scheduler()
    connect(core, "w", 1)
    core.handle(TasksSubmitted([task("t")]), 0.0)
    receive(core, "w", Started("t", 1), 0.5)
    receive(core, "w", Failed("t", 1, "error", "no"), 1.0)
    found = core.statistics["m"]
    assert (found.run.sum, found.in_time, found.late) == (0, 1, 0)
    assert +found.ended == {("image", "failed"): 1}


def test_moves_by_cause_and_redone_steps() -> None:
    core = scheduler()
    connect(core, "a", 1)
    core.handle(TasksSubmitted([task("t")]), 0.0)
    receive(core, "a", Started("t", 1), 0.0)
    receive(core, "a", Preempted("t", 1, step=3, frames=1), 1.0, (b"state",))
    receive(core, "a", Progress("t", 2, step=8, steps=20), 2.0)
    core.handle(WorkerLost("a", "it died"), 3.0)
    found = core.statistics["m"]
    assert +found.moves == {"preempted": 1, "worker_lost": 1}
    assert found.steps_redone == 5
    assert counts(found.queue_wait) == {0.01: 1}, "only the first start counts"
    assert counts(found.time_in_queue) == {0.01: 1}


def test_first_preview_counts_once() -> None:
    core = scheduler()
    connect(core, "w", 1)
    wanted = task("t")
    wanted.inputs = msgspec.structs.replace(INPUTS, previews=2)
    core.handle(TasksSubmitted([wanted]), 0.0)
    for step, now in ((5, 2.0), (10, 4.0)):
        receive(core, "w", Progress("t", 1, step=step, steps=20, preview=True, frames=1), now, (PNG,))
    assert counts(core.statistics["m"].first_preview) == {2.5: 1}


def test_refused_tasks_are_counted() -> None:
    core = scheduler(max_tasks=1)
    core.handle(TasksSubmitted([task("a")]), 0.0)
    with pytest.raises(QueueFull):
        core.handle(TasksSubmitted([task("b"), task("c")]), 0.0)
    assert +core.statistics["m"].refused == {"queue_full": 2}


def test_process_that_connects_again_has_started_once() -> None:
    core = scheduler()
    start = StartupTimes(spawn_s=1.0, load_s=20.0)
    for pid, now in ((1, 0.0), (1, 1.0), (2, 2.0)):
        receive(core, "w", Hello(PROTOCOL, "w", "m", "sim:0", pid, start=start), now)
        core.handle(WorkerLost("w", "its connection has ended"), now)
    receive(core, "v", Hello(PROTOCOL, "v", "m", "sim:0", 3, start=StartupTimes(load_s=2.0, standby=True)), 3.0)
    receive(core, "u", Hello(PROTOCOL, "u", "m", "sim:0", 4), 3.0)  # its times are not known
    found = core.statistics["m"]
    assert (counts(found.cold_start), counts(found.standby_start)) == ({30: 2}, {2.5: 1})
    assert found.start_phases[False, "load"] == 40.0
    assert found.start_phases[True, "load"] == 2.0


def test_owners_are_bounded() -> None:
    core = scheduler(max_tasks=2 * MAX_PAIRS)
    for number in [*range(MAX_PAIRS + 10), 0]:
        of_owner = task(f"t{number}")
        of_owner.owner = f"key{number}"
        core.handle(TasksSubmitted([of_owner]), 0.0)
        core.handle(TasksCancelled([of_owner.id], "it left"), 1.0)
    usage = core.owners.usage
    assert len(usage) == MAX_PAIRS + 1
    assert [usage["m", owner].ended[TaskState.CANCELLED] for owner in ("key0", "key1", REMAINDER)] == [2, 1, 10]


def test_a_promise_among_the_bounds_adds_none() -> None:
    assert len(WaitingTimes(10.0).exported().bounds) == len(SECONDS)


def test_uncounted_values_are_few() -> None:
    core = scheduler()
    connect(core, "w", 1)
    for number in range(3 * FOLD_EVERY):
        core.handle(TasksSubmitted([task(f"t{number}")]), 0.0)
        receive(core, "w", Finished(f"t{number}", 1, IMAGE), 4.5, (PNG,))
    statistics = core.statistics["m"]
    own = [value for value in vars(statistics).values() if isinstance(value, Histogram)]
    assert all(len(histogram._new) < FOLD_EVERY for histogram in own)
    assert statistics.run.count == statistics.queue_wait.count == 3 * FOLD_EVERY


def test_run_of_a_task_of_one_step_is_the_time_of_its_step() -> None:
    core = scheduler()
    connect(core, "w", 2)
    one = task("one")
    one.steps = 1
    core.handle(TasksSubmitted([one, task("several")]), 0.0)
    for name in ("one", "several"):
        receive(core, "w", Started(name, 1), 0.0)
        receive(core, "w", Finished(name, 1, IMAGE), 4.0, (PNG,))
    found = core.statistics["m"]
    assert (counts(found.run), found.run.sum) == ({5: 2}, 8.0)
    assert (counts(found.step), found.step.sum) == ({5: 1, 0.25: 1}, 4.0 + 4.0 / INPUTS.steps)
