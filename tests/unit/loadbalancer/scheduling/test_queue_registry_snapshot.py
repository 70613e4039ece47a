"""The parts that the dispatcher is made of, where the dispatcher's own tests do not reach."""

from __future__ import annotations

import pytest

from loadbalancer.scheduling.cost_model import ImageCosts
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.snapshot import WINDOW_S, ModelCounters, SlidingWindow, snapshot
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.worker_registry import Worker, WorkerRegistry
from wire.messages import PROTOCOL, Heartbeat, Hello, ImageInputs

INPUTS = ImageInputs("a seven", 64, 64, steps=20, guidance_scale=3.0, seed=1, scheduler="ddim")


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
    assert (queue.room("anonymous"), queue.steps, queue.oldest()) == (0, {(64, 64): 60}, 1.0)
    queue.remove(early)
    assert (queue.room("anonymous"), queue.steps, queue.oldest(), len(queue)) == (1, {(64, 64): 40}, 2.0, 2)
    with pytest.raises(KeyError):
        queue.remove(early)
    with pytest.raises(KeyError):
        queue.position(early)
    assert repr(queue) == "<ModelQueue 2 of 3 tasks, 40 steps>"


def test_place_prefers_the_emptiest_and_respects_model_silence_and_draining() -> None:
    roster = WorkerRegistry(heartbeat_s=1.0, lost_after_s=10.0)
    for w in (
        worker("busy", 4, held=3),
        worker("half", 4, held=2),
        worker("full", 1, held=1),
        worker("other", 4, model="n"),
        worker("silent", 4, seen=-5.0),
        worker("draining", 0),
    ):
        roster.workers[w.id] = w
    roster.workers["draining"].draining = True
    chosen = roster.place(task("t"), now=0.0)
    assert chosen is not None
    assert chosen.id == "half"
    assert {w.id: roster.state(w, 0.0) for w in roster}["silent"] == "silent"
    assert {w.id: roster.state(w, 0.0) for w in roster}["draining"] == "draining"
    assert [w.id for w in roster.lost(6.0)] == ["silent"]
    assert repr(roster) == "<Roster 6 workers, 6 of 17 slots held>"


def test_window_forgets_and_adds_up() -> None:
    window = SlidingWindow()
    assert window.rate(0.0) == 0.0
    for second in range(120):
        window.add(2, second + 0.5)
        window.add(1, second + 0.7)
    assert window.rate(119.9) == pytest.approx(3.0)
    assert window.rate(119.9 + WINDOW_S / 2) == pytest.approx(1.5, abs=0.06)
    assert window.rate(1000.0) == 0.0


def test_snapshot_counts_and_converts_steps_to_seconds() -> None:
    roster = WorkerRegistry(1.0, 10.0)
    busy = worker("w", 12, held=3)
    busy.beat = Heartbeat(running=2, step_s=0.05, batch=2.0)
    roster.workers["w"] = busy
    queue = ModelQueue(10)
    queue.push(task("a", created=4.0))
    queue.push(task("b", created=5.0))
    rates = ModelCounters()
    rates.arrived((64, 64), 20, 6, 9.0)
    costs = {"m": ImageCosts()}
    seen = snapshot({"m": queue}, {"m": rates}, costs, {}, roster, now=10.0, wall_time=1e9, uptime_s=10.0)
    [model], [stats] = seen.models, seen.workers
    assert (model.queued, model.running, model.oldest_wait_s) == (2, 3, 6.0)
    assert model.arrival_rate == pytest.approx(0.1)
    assert model.queued_work_s == pytest.approx(40 / (2.0 / 0.05)), "40 steps at 40 task-steps a second"
    assert (stats.running, stats.assigned, stats.slots, stats.last_seen_s) == (2, 1, 12, 10.0)
    assert seen.uptime_s == 10.0


def test_no_measured_step_means_no_estimate_rather_than_zero() -> None:
    roster = WorkerRegistry(1.0, 10.0)
    roster.workers["w"] = worker("w", 1)
    queues, rates, costs = {"m": ModelQueue(1)}, {"m": ModelCounters()}, {"m": ImageCosts()}
    [model] = snapshot(queues, rates, costs, {}, roster, now=0.0, wall_time=0.0, uptime_s=0.0).models
    assert (model.queued_work_s, model.backlog_work_s, model.mean_work_s, model.batch_cap) == (None, None, None, None)
