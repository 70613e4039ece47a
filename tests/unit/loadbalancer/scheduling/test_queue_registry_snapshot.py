"""Parts of the scheduler, where its own tests do not reach."""

from __future__ import annotations

import pytest

from configs.sections import Workers
from loadbalancer.scheduling.model_statistics import WINDOW_S, SlidingWindow
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.worker_pool import Worker
from loadbalancer.scheduling.worker_registry import WorkerRegistry
from tests.support.scheduler import INPUTS, new_scheduler
from wire.inputs import Shape
from wire.messages import PROTOCOL, Heartbeat, Hello


def task(name: str, created: float = 0.0, priority: int = 0) -> Task:
    return Task(name, "m", INPUTS, created, 100.0, priority, steps=20)


def worker(name: str, slots: int, *, held: int = 0, seen: float = 0.0, model: str = "m") -> Worker:
    return Worker(Hello(PROTOCOL, name, model, "sim:0", 1), seen, slots, {f"{name}{i}": 1 for i in range(held)})


def test_queue_keeps_order_positions_and_steps() -> None:
    queue = ModelQueue(3)
    late, early, urgent = task("late", 2.0), task("early", 1.0), task("urgent", 3.0, priority=1)
    for item in (late, early, urgent):
        queue.push(item)
    assert [t.id for t in queue] == ["urgent", "early", "late"]
    assert [queue.position(t) for t in (urgent, early, late)] == [0, 1, 2]
    assert (queue.room("anonymous"), queue.steps, queue.oldest()) == (0, {Shape("64x64", 4096): 60}, 1.0)
    queue.remove(early)
    assert (queue.room("anonymous"), queue.steps, queue.oldest(), queue.count) == (
        1,
        {Shape("64x64", 4096): 40},
        2.0,
        2,
    )
    with pytest.raises(KeyError):
        queue.remove(early)
    with pytest.raises(KeyError):
        queue.position(early)
    assert repr(queue) == "<ModelQueue 2 of 3 tasks, 40 steps>"


def test_available_workers_are_ready_and_sorted_by_load() -> None:
    registry = WorkerRegistry(Workers())
    for w in (
        worker("busy", 4, held=3),
        worker("half", 4, held=2),
        worker("full", 1, held=1),
        worker("other", 4, model="n"),
        worker("silent", 4, seen=-5.0),
        worker("draining", 0),
    ):
        registry.add(w)
    registry.workers["draining"].draining = True
    assert [w.id for w in registry.available("m", 0.0)] == ["half", "busy"]
    assert {w.id: registry.state(w, 0.0) for w in registry}["silent"] == "silent"
    assert {w.id: registry.state(w, 0.0) for w in registry}["draining"] == "draining"
    assert [w.id for w in registry.timed_out(6.0)] == ["silent"]
    assert repr(registry) == "<WorkerRegistry 6 workers, 6 of 17 slots assigned>"


def test_window_rate_drops_expired_events() -> None:
    window = SlidingWindow()
    assert window.rate(0.0) == 0.0
    for second in range(120):
        window.add(2, second + 0.5)
        window.add(1, second + 0.7)
    assert window.rate(119.9) == pytest.approx(3.0)
    assert window.rate(119.9 + WINDOW_S / 2) == pytest.approx(1.5, abs=0.06)
    assert window.rate(1000.0) == 0.0


def test_snapshot_converts_steps_to_seconds() -> None:
    core = new_scheduler()
    busy = worker("w", 12, held=3)
    busy.on_heartbeat(Heartbeat(running=2, step_s=0.05, batch=2.0), 0.0)
    core.registry.add(busy)
    core.queues["m"].push(task("a", created=4.0))
    core.queues["m"].push(task("b", created=5.0))
    core.statistics["m"].on_arrival(Shape("64x64", 4096), 20, 6, 9.0)
    snapshot = core.snapshot(now=10.0, wall_time=1e9, uptime_s=10.0)
    [model], [stats] = snapshot.models, snapshot.workers
    assert (model.queued, model.running, model.oldest_wait_s) == (2, 3, 6.0)
    assert model.arrival_rate == pytest.approx(0.1)
    assert model.queued_work_s == pytest.approx(40 / (2.0 / 0.05)), "40 steps at 40 task-steps a second"
    assert (stats.running, stats.assigned, stats.slots, stats.last_message_age_s) == (2, 1, 12, 10.0)
    assert snapshot.uptime_s == 10.0


def test_unmeasured_step_gives_no_estimate() -> None:
    core = new_scheduler()
    core.registry.add(worker("w", 1))
    [model] = core.snapshot(now=0.0, wall_time=0.0, uptime_s=0.0).models
    assert (model.queued_work_s, model.backlog_work_s, model.mean_work_s, model.batch_cap) == (None, None, None, None)
