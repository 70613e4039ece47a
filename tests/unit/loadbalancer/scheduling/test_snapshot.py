"""Counters and work estimates: by cases, at random, and through the scheduler."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.scaling import Scaling, Slo
from loadbalancer.scheduling.cost_model import CostModel
from loadbalancer.scheduling.estimates import backlog_work_s, long_work_s
from loadbalancer.scheduling.events import RecordTask, TasksCancelled, TasksSubmitted, Tick, WorkerLost
from loadbalancer.scheduling.model_statistics import ModelStatistics, SlidingWindow
from loadbalancer.scheduling.owner_usage import OwnerStatistics
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.worker_pool import Worker
from tests.support.scheduler import CURVES, IMAGE, PNG, assignments, connect, new_scheduler, receive, task
from wire.inputs import ImageInputs, Shape
from wire.messages import PROTOCOL, Finished, Heartbeat, Hello, Preempted, Progress, Started, StepCurve
from wire.snapshot import ArrivalBucket, ModelStats

SPAN_S = 10


def stats(core: Scheduler, now: float) -> ModelStats:
    return core.snapshot(now=now, wall_time=0.0, uptime_s=now).models[0]


def measured(scaling: Scaling | None = None) -> Scheduler:
    """One worker `w` with four slots, on which a step takes 0.1 s for each task in it."""
    core = new_scheduler(scaling=scaling)
    connect(core, "w", 4)
    receive(core, "w", Heartbeat(running=0, curves=CURVES))
    core.handle(Tick(), 0.0)
    return core


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 5)), max_size=80), st.floats(0.0, 30.0))
def test_window_count_is_exact_to_a_second(steps: list[tuple[float, int]], silence: float) -> None:
    window, now, events = SlidingWindow(SPAN_S), 1000.0, []
    for pause, count in steps:
        now += pause
        window.add(count, now)
        events.append((now, count))
        surely = sum(number for at, number in events if at > now - SPAN_S + 1)
        at_most = sum(number for at, number in events if at > now - SPAN_S - 1)
        assert surely <= window.count(now) <= at_most
    now += silence
    assert sum(n for at, n in events if at > now - SPAN_S + 1) <= window.count(now)
    assert window.count(now) <= sum(n for at, n in events if at > now - SPAN_S - 1)
    assert window.count(now + SPAN_S + 1) == 0


def test_arrivals_are_counted_over_configured_periods() -> None:
    rates = ModelStatistics("m", Scaling(look_back_period_s=10, rate_window_s=100), OwnerStatistics())
    for second in range(200):
        rates.on_arrival(Shape("64x64", 4096), 20, 2, second + 0.5)
    assert (rates.arrivals_short_window(199.9), rates.arrivals_long_window(199.9)) == (20, 200)
    assert (rates.arrivals_short_window(204.9), rates.arrivals_long_window(204.9)) == (10, 190)
    assert rates.arrival_rate(199.9) == pytest.approx(2.0)


@pytest.mark.parametrize(("waits", "late"), [([], 0), ([0.0, 5.0], 0), ([5.1], 1), ([4.0, 6.0, 60.0], 2)])
def test_late_starts_are_counted(waits: list[float], late: int) -> None:
    rates = ModelStatistics("m", Scaling(slo=Slo(max_wait_s=5.0)), OwnerStatistics())
    for wait in waits:
        rates.on_start(wait)
    assert (rates.waits.count, rates.waits.in_time) == (len(waits), len(waits) - late)
    assert sum(rates.totals().waits) == len(waits)


def test_mean_work_covers_the_last_200_arrivals() -> None:
    rates, costs = ModelStatistics("m", Scaling(), OwnerStatistics()), CostModel()
    assert rates.mean_work_s(costs) is None
    rates.on_arrival(Shape("64x64", 4096), 100, 300, 0.0)
    assert rates.mean_work_s(costs) is None, "no step was measured"
    costs.on_start("t", Worker(Hello(PROTOCOL, "w", "m", "sim:0", 1), 0.0), 0.0)
    costs.on_stop("t", 0.1, (Shape("64x64", 4096), 1))
    assert rates.mean_work_s(costs) == pytest.approx(10.0)
    rates.on_arrival(Shape("64x64", 4096), 20, 100, 1.0)
    assert rates.mean_work_s(costs) == pytest.approx(6.0), "half of them are the new ones"
    rates.on_arrival(Shape("32x32", 1024), 20, 1, 2.0)
    assert rates.mean_work_s(costs) is None, "of that size nothing is known"


def sides(shape: Shape) -> tuple[int, int]:
    width, height = map(int, shape.key.split("x"))
    return width, height


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Shape("64x64", 4096), Shape("128x64", 8192), Shape("32x32", 1024)]), st.integers(1, 50)
        ),
        max_size=30,
    ),
    st.integers(0, 30),
)
def test_backlog_work_sums_running_and_waiting(sizes: list[tuple[Shape, int]], split: int) -> None:
    worker = Worker(Hello(PROTOCOL, "w", "m", "sim:0", 1), 0.0)
    curves = [StepCurve(Shape("64x64", 4096), 4, [(1, 0.5), (4, 1.0)]), StepCurve(Shape("128x64", 8192), 4, [(1, 2.0)])]
    worker.on_heartbeat(Heartbeat(running=0, curves=curves), 0.0)
    costs, queue = CostModel(), ModelQueue(100)
    costs.update([worker])
    each = {Shape("64x64", 4096): 0.5, Shape("128x64", 8192): 2.0, Shape("32x32", 1024): 0.125}
    tasks = [
        Task(str(n), "m", ImageInputs("x", *sides(shape), steps, 3.0, 1, "ddim"), 0.0, 1.0, steps=steps)
        for n, (shape, steps) in enumerate(sizes)
    ]
    for waiting in tasks[split:]:
        queue.push(waiting)
    for number, under_way in enumerate(tasks[:split]):
        under_way.step = min(number, under_way.steps)
    expected = sum(each[t.shape] * (t.steps - t.step) for t in tasks)
    assert backlog_work_s(queue, tasks[:split], costs) == pytest.approx(expected)


def test_long_work_is_what_started_tasks_have_left_beyond_the_drain_time() -> None:
    worker = Worker(Hello(PROTOCOL, "w", "m", "sim:0", 1), 0.0)
    shape = Shape("64x64", 4096)
    worker.on_heartbeat(Heartbeat(running=0, curves=[StepCurve(shape, 4, [(1, 0.5), (4, 1.0)])]), 0.0)
    costs = CostModel()
    costs.update([worker])
    tasks = [
        Task(str(steps), "m", ImageInputs("x", 64, 64, steps, 3.0, 1, "ddim"), 0.0, 1.0, steps=steps)
        for steps in (10, 50, 100)
    ]
    for started in tasks[:2]:
        started.first_started = 1.0
    # 5 s and 25 s are left of the started ones. In a full batch everything takes twice as long: 20 s are 10 s of work.
    assert long_work_s(tasks, costs, 20.0) == pytest.approx(25 - 10)
    assert long_work_s(tasks, costs, 50.0) == 0
    assert long_work_s(tasks, CostModel(), 1.0) == 0, "nothing was measured"


def test_snapshot_follows_a_task() -> None:
    core = measured(Scaling(look_back_period_s=10, rate_window_s=60, slo=Slo(max_wait_s=3)))
    seen = stats(core, 0.0)
    assert (seen.batch_cap, seen.batch_slowdown, seen.backlog_work_s, seen.mean_work_s) == (4, 4.0, 0.0, None)
    names = [f"t{n}" for n in range(6)]
    core.handle(TasksSubmitted([task(name, 1.0) for name in names]), 1.0)
    seen = stats(core, 1.0)
    assert (seen.arrivals_short_window, seen.arrivals_long_window, seen.queued, seen.running) == (6, 6, 2, 4)
    assert seen.backlog_work_s == pytest.approx(6 * 20 * 0.1)
    assert seen.mean_work_s == pytest.approx(2.0)
    for name, began in (("t0", 2.0), ("t1", 4.5)):
        receive(core, "w", Started(name, 1), began)
    seen = stats(core, 5.0)
    assert (seen.started_total, seen.started_late_total, seen.oldest_wait_s) == (2, 1, 4.0)
    receive(core, "w", Progress("t0", 1, 15, 20), 6.0)
    assert stats(core, 6.0).backlog_work_s == pytest.approx(5 * 2.0 + 0.5)
    core.handle(TasksCancelled(["t5"], "gone"), 6.0)
    assert stats(core, 6.0).backlog_work_s == pytest.approx(4 * 2.0 + 0.5)
    # t0 had 2.5 s alone, then 3.5 s of which t1 had half: 4.25 s for its 20 steps, which the curve said would be 2.
    receive(core, "w", Finished("t0", 1, IMAGE), 8.0, (PNG,))
    assert core.costs["m"].work_s(Shape("64x64", 4096), 1) == pytest.approx(4.25 / 20)
    assert stats(core, 8.0).mean_work_s == pytest.approx(4.25)
    assert stats(core, 12.0).arrivals_short_window == 0


def test_snapshot_keeps_costs_without_workers() -> None:
    core = measured()
    core.handle(WorkerLost("w", "it was told to go"), 5.0)
    core.handle(Tick(), 6.0)
    core.handle(TasksSubmitted([task("t", 7.0)]), 7.0)
    seen = stats(core, 8.0)
    assert (seen.batch_cap, seen.batch_slowdown, seen.backlog_work_s, seen.mean_work_s) == (4, 4.0, 2.0, 2.0)
    assert (seen.queued, seen.oldest_wait_s) == (1, 1.0)


def test_interrupted_task_is_recorded_not_learned() -> None:
    core = measured()
    core.handle(TasksSubmitted([task("t")]), 0.0)
    receive(core, "w", Started("t", 1), 1.0)
    effects = receive(core, "w", Preempted("t", 1, 10, 1), 3.0, (b"state",))
    [(_, again)] = assignments(effects)
    receive(core, "w", Started("t", again.attempt), 4.0)
    effects = receive(core, "w", Finished("t", again.attempt, IMAGE), 9.0, (PNG,))
    [account] = [effect for effect in effects if isinstance(effect, RecordTask)]
    assert account.task.work_s == pytest.approx(7.0)
    assert core.costs["m"].work_s(Shape("64x64", 4096), 1) == pytest.approx(0.1), "the curve's"
    assert stats(core, 9.0).started_total == 1, "begun for the first time once"


@pytest.mark.parametrize("started", [1000.0, 1000.25, 1000.75])
def test_arrivals_are_reported_by_second_of_uptime(started: float) -> None:
    counters = ModelStatistics("m", Scaling(interval_s=10), OwnerStatistics())
    for at, count, work_s in ((100.2, 2, 3.0), (100.6, 1, 5.0), (103.1, 1, None)):
        counters.on_arrival(Shape("64x64", 4096), 20, count, started + at, work_s)
    now = started + 104.9
    *first, last = counters.recent_arrivals(now, now - started)
    assert sum(bucket.tasks for bucket in first) == 3
    assert sum(bucket.work_s for bucket in first) == 11.0
    assert max(bucket.largest_s for bucket in first) == 5.0
    assert (last.tasks, last.work_s, last.largest_s) == (1, 0.0, 0.0), "not measured yet"
    assert (first[0].second, last.second) in {(100, 103), (101, 104)}
    assert counters.recent_arrivals(now + 200, now + 200 - started) == ()


@pytest.mark.parametrize(("interval_s", "seconds"), [(10, 120), (30, 120), (100, 200)])
def test_arrivals_are_reported_for_two_intervals(interval_s: float, seconds: int) -> None:
    counters = ModelStatistics("m", Scaling(interval_s=interval_s), OwnerStatistics())
    for second in range(500):
        counters.on_arrival(Shape("64x64", 4096), 20, 1, second + 0.5, 1.0)
    reported = counters.recent_arrivals(500.0, 500.0)
    assert seconds - 1 <= len(reported) <= seconds


def test_no_arrival_is_in_a_second_that_was_already_complete() -> None:
    history, started = SlidingWindow(120.0), 17.3
    known: dict[int, ArrivalBucket] = {}
    for tenth in range(200):
        now = started + tenth / 10
        history.add(1, now, 1.0)
        for bucket in history.arrivals(now, now - started, 120.0):
            if bucket.second < int(now - started):
                assert known.setdefault(bucket.second, bucket) == bucket
