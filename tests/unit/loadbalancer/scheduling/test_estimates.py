"""Models without workers keep their requests until the deadline; estimated waits of new tasks."""

from __future__ import annotations

import pytest

from configs.sections import Queue
from loadbalancer.scheduling.events import (
    ProxyFinished,
    RequestProxied,
    TasksCancelled,
    TasksSubmitted,
    Tick,
    WorkerLost,
)
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import DeadlineUnreachable, QueueFull, TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from tests.support.scheduler import CURVES, connect, new_scheduler, receive, task, updates
from wire.inputs import Shape
from wire.messages import Capacity, Heartbeat, Progress, Started, StepCurve

CONFIG = Queue(deadline_slack=1.5, max_work_s=3.0)


def measured(slots: int = 1) -> Scheduler:
    """One worker `w`, on which an image of 20 steps takes 2 s, alone or beside others."""
    core = new_scheduler(CONFIG)
    connect(core, "w", slots)
    receive(core, "w", Heartbeat(running=0, curves=CURVES))
    core.handle(Tick(), 0.0)
    return core


def fill(core: Scheduler, count: int, timeout_s: float = 1000.0) -> None:
    for number in range(count):
        core.handle(TasksSubmitted([task(f"t{number:02}", timeout_s=timeout_s)]), 0.0)


def test_curve_above_its_cap_is_no_rate() -> None:
    """Its points are measured, but none may be used: more images than slots are accepted without an estimate."""
    core = new_scheduler(Queue(deadline_slack=1.5))
    connect(core, "w", 1)
    usable, unusable = StepCurve(Shape("32x32", 1024), 4, [(1, 0.1)]), StepCurve(Shape("64x64", 4096), 1, [(2, 0.2)])
    receive(core, "w", Heartbeat(running=0, curves=[usable, unusable]))
    core.handle(TasksSubmitted([task("a", timeout_s=0.1), task("b", timeout_s=0.1)]), 0.0)
    assert set(core.tasks) == {"a", "b"}


@pytest.mark.parametrize("way_to_go", ["gone", "never there", "back, but not open yet"])
def test_no_workers_rejects_no_deadline(way_to_go: str) -> None:
    core = measured()
    with pytest.raises(DeadlineUnreachable):
        core.handle(TasksSubmitted([task("hopeless", timeout_s=0.5)]), 0.0)
    if way_to_go == "never there":
        core = new_scheduler(CONFIG)
    else:
        core.handle(WorkerLost("w", "it was told to go"), 1.0)
    if way_to_go == "back, but not open yet":
        connect(core, "v", 0, 1.0)
    fill(core, 50, timeout_s=0.5)
    assert core.queues["m"].count == 50
    estimate = core.estimate("t49")
    assert estimate is not None
    assert (estimate.state, estimate.position, estimate.eta_s) == (TaskState.QUEUED, 49, None)
    ends = [update for update in updates(core.handle(Tick(), 0.6)) if isinstance(update, TaskEnded)]
    assert len(ends) == 50, "each is held for as long as it allows, and no longer"


def test_no_workers_queue_is_still_bounded() -> None:
    core = new_scheduler(Queue(max_tasks=10, deadline_slack=1.5, max_work_s=3.0))
    fill(core, 10)
    with pytest.raises(QueueFull):
        core.handle(TasksSubmitted([task("one more")]), 0.0)


def wait(core: Scheduler) -> float | None:
    return core.estimate_wait(task("new", 5.0))


@pytest.mark.parametrize(
    ("slots", "inside", "seconds"),
    [
        (1, 0, 0.0),
        (4, 3, 0.0),
        # Nobody waits yet, but the one that runs must be done first: 2 s in a full batch of four, as measured.
        (1, 1, 8.0),
        # Two wait behind it, 2 s of work each in full batches.
        (1, 3, 8.0 + 4.0),
    ],
)
def test_estimated_wait_of_a_new_task(slots: int, inside: int, seconds: float) -> None:
    core = measured(slots)
    core = core if inside < 3 or slots > 1 else unbounded(core)
    fill(core, inside)
    assert wait(core) == pytest.approx(seconds)


def unbounded(core: Scheduler) -> Scheduler:
    """The same with a queue that takes any amount of work."""
    del core
    open_core = new_scheduler(Queue(deadline_slack=None))
    connect(open_core, "w", 1)
    receive(open_core, "w", Heartbeat(running=0, curves=CURVES))
    return open_core


def test_wait_ignores_completed_steps_and_draining() -> None:
    core = measured()
    fill(core, 1)
    receive(core, "w", Started("t00", 1))
    receive(core, "w", Progress("t00", 1, 15, 20))
    assert wait(core) == pytest.approx(5 * 0.4)
    receive(core, "w", Capacity(0))
    assert wait(core) is None
    assert wait(new_scheduler()) is None, "no worker, so nothing is known"


def test_proxied_request_counts_as_arrivals_only() -> None:
    core = new_scheduler()
    counters = core.statistics["m"]
    core.handle(RequestProxied("m", Shape("64x64", 4096), 20, 3), 1.0)
    assert (
        counters.arrivals_short_window(1.0),
        counters.proxied_total,
        counters.proxied_in_flight,
        core.queues["m"].count,
    ) == (3, 3, 3, 0)
    core.handle(ProxyFinished("m", 3), 2.0)
    core.handle(TasksSubmitted([task("t", 2.0)], already_counted=True), 2.0)  # it did not do it after all
    assert (
        counters.arrivals_short_window(2.0),
        counters.proxied_total,
        counters.proxied_in_flight,
        core.queues["m"].count,
    ) == (3, 3, 0, 1)
    core.handle(TasksSubmitted([task("u", 2.0)]), 2.0)
    assert counters.arrivals_short_window(2.0) == 4
    core.handle(TasksCancelled(["t", "u"], "gone"), 3.0)
    assert counters.arrivals_short_window(3.0) == 4
