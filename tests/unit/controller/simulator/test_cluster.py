"""The simulated cluster on small hand-calculated cases, and its counters on random histories."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.simulator.cluster import SimCluster
from controller.simulator.model_sim import ModelSim, WorkerProfile, batch_slowdowns
from controller.types import Stage

INF = math.inf


def pool_of(times: list[float], work: list[float], **options: Any) -> tuple[SimCluster, ModelSim]:
    model = ModelSim(WorkerProfile("m", **options), times, work)
    return SimCluster({"m": model}), model


def run(cluster: SimCluster, model: ModelSim, until: float = INF) -> None:
    """Process all events and arrivals up to a time."""
    while True:
        coming = model.times[model.tail] if model.tail < len(model.times) else INF
        if min(cluster.next_at, coming) > until or min(cluster.next_at, coming) == INF:
            return
        if cluster.next_at <= coming:
            cluster.step()
        else:
            cluster.arrive(model)


def test_batch_slowdowns() -> None:
    assert batch_slowdowns(4, 0.25) == (1.0, 1.75, 2.5, 3.25)
    assert batch_slowdowns(2, 1.0) == (1.0, 1.0)


def test_worker_runs_tasks_in_order() -> None:
    cluster, model = pool_of([0.0, 1.0, 9.0], [4.0, 2.0, 1.0])
    cluster.start("m", "cuda:0", 0.0, ready=True)
    run(cluster, model)
    assert model.waits == [0.0, 3.0, 0.0]
    assert model.ends == [4.0, 6.0, 10.0]


def test_two_tasks_share_a_worker() -> None:
    # Alone from 0 to 2, then both at half speed: the second task (1 s) ends at 4.
    cluster, model = pool_of([0.0, 2.0], [4.0, 1.0], slowdowns=(1.0, 2.0))
    cluster.start("m", "cuda:0", 0.0, ready=True)
    run(cluster, model)
    assert model.waits == [0.0, 0.0]
    # The first task then has 1 s left and runs alone.
    assert model.ends == [5.0, 4.0]


def test_batch_without_slowdown_is_as_fast_as_one_task() -> None:
    cluster, model = pool_of([0.0, 0.0, 1.0], [3.0, 2.0, 1.0], slowdowns=(1.0, 1.0))
    cluster.start("m", "cuda:0", 0.0, ready=True)
    run(cluster, model)
    assert model.waits == [0.0, 0.0, 1.0]
    assert model.ends == [3.0, 2.0, 3.0]


def test_least_busy_worker_gets_the_next_task() -> None:
    cluster, model = pool_of([0.0, 0.0, 0.0], [5.0, 5.0, 5.0], slowdowns=(1.0, 1.5, 2.0))
    for number in range(2):
        cluster.start("m", f"cuda:{number}", 0.0, ready=True)
    run(cluster, model, 0.0)
    assert sorted(len(worker.running) for worker in cluster.workers.values()) == [1, 2]


def test_cold_start_delays_tasks_and_is_charged() -> None:
    cluster, model = pool_of([0.0], [2.0], cold_starts_s=(40.0,), max_wait_s=10.0)
    cluster.start("m", "cuda:0", 5.0)
    run(cluster, model)
    assert model.waits == [45.0]
    assert model.ends == [47.0]
    assert (model.late, model.starts) == (1, 1)
    (worker,) = cluster.workers
    cluster.drain(worker, 50.0)
    run(cluster, model)
    assert model.worker_s == 51.0 - 5.0


def test_drained_worker_returns_tasks_with_progress() -> None:
    cluster, model = pool_of([0.0, 0.5], [10.0, 1.0], drain_s=0.5)
    cluster.start("m", "cuda:0", 0.0, ready=True)
    (first,) = cluster.workers
    run(cluster, model, 4.0)
    cluster.drain(first, 4.0)
    cluster.start("m", "cuda:1", 4.0, ready=True)
    run(cluster, model)
    # The first task had 6 s left, and it runs before the other.
    assert model.ends == [10.0, 11.0]
    assert model.waits == [0.0, 9.5]
    assert [(ended.process.id, ended.at, ended.status) for ended in cluster.take_exits()] == [(first, 4.5, 0)]


def test_loading_worker_drains_at_once() -> None:
    cluster, model = pool_of([], [])
    cluster.start("m", "cuda:0", 0.0)
    (worker,) = cluster.workers
    cluster.drain(worker, 10.0)
    run(cluster, model)
    assert model.worker_s == 10.0
    assert not cluster.workers
    assert model.history == [(0.0, 1, 0), (10.0, 0, 0)]


def test_crash_loses_progress_since_last_checkpoint() -> None:
    cluster, model = pool_of([0.0], [10.0])
    cluster.start("m", "cuda:0", 0.0, ready=True)
    (worker,) = cluster.workers
    run(cluster, model, 0.0)
    cluster.kill(worker, 4.0)
    cluster.start("m", "cuda:0", 4.0, ready=True)
    run(cluster, model)
    assert model.ends == [11.0]
    assert (model.crashes, cluster.take_exits()[0].status) == (1, -9)
    assert model.waits == [0.0], "it waited once only, for its first worker"


def test_standby_worker_is_ready_sooner() -> None:
    cluster, model = pool_of([60.0], [1.0], cold_starts_s=(40.0,), standby_start_s=5.0)
    cluster.start_spare("m", "cuda", 0.0)
    (spare,) = model.spares
    run(cluster, model, 60.0)
    assert not cluster.workers, "a spare holds no device"
    assert model.worker_s == 0
    cluster.activate(spare, "m", "cuda:0", 60.0)
    run(cluster, model)
    assert model.waits == [5.0]
    (replica,) = [worker.as_replica() for worker in cluster.workers.values()]
    assert (replica.started_in_s, replica.from_standby) == (5.0, True)


def test_observed_replica_follows_worker_stages() -> None:
    cluster, model = pool_of([0.0], [5.0], cold_starts_s=(3.0,))
    cluster.start("m", "cuda:0", 0.0)
    (worker,) = cluster.workers.values()
    assert (worker.as_replica().stage, worker.as_replica().load) == (Stage.STARTING, 0)
    run(cluster, model, 4.0)
    assert (worker.as_replica().stage, worker.as_replica().load, worker.as_replica().process.ready_at) == (
        Stage.READY,
        1,
        3.0,
    )
    cluster.drain(worker.process.id, 4.0)
    assert (worker.as_replica().stage, worker.as_replica().load) == (Stage.DRAINING, 0)


def test_remaining_work_is_sum_of_queue_and_workers() -> None:
    cluster, model = pool_of([0.0, 0.0, 0.0], [4.0, 4.0, 4.0], slowdowns=(1.0, 2.0))
    cluster.start("m", "cuda:0", 0.0, ready=True)
    run(cluster, model, 0.0)
    assert model.advance_work(0.0) == pytest.approx(12.0)
    # Two tasks at half speed do one second of work per second.
    assert model.advance_work(3.0) == pytest.approx(9.0)
    assert (model.queued, model.running) == (1, 2)


HISTORY = st.lists(
    st.tuples(st.sampled_from(["start", "now", "drain", "kill", "wait"]), st.integers(0, 5), st.floats(0.0, 9.0)),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=30),
    batch=st.integers(1, 4),
    fixed_share=st.floats(0, 1),
    history=HISTORY,
)
def test_no_task_is_lost_in_any_event_sequence(
    gaps: list[float], batch: int, fixed_share: float, history: list[tuple[str, int, float]]
) -> None:
    times = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    work = [1.0 + number % 3 for number in range(len(gaps))]
    cluster, model = pool_of(times, work, slowdowns=batch_slowdowns(batch, fixed_share), cold_starts_s=(2.0, 7.0))
    born: dict[str, float] = {}
    now = 0.0
    for what, which, seconds in history:
        names = sorted(cluster.workers)
        if what in ("start", "now"):
            cluster.start("m", "cuda:0", now, ready=what == "now")
        elif names and what == "drain":
            cluster.drain(names[which % len(names)], now)
        elif names and what == "kill":
            cluster.kill(names[which % len(names)], now)
        now += seconds
        run(cluster, model, now)
        born |= {name: worker.process.started_at for name, worker in cluster.workers.items()}
        check(cluster, model, now)
    cluster.start("m", "cuda:0", now, ready=True)
    run(cluster, model)
    assert model.done == len(times)
    assert not any(map(math.isnan, model.ends + model.waits))
    for came, wait, end, needs in zip(times, model.waits, model.ends, work, strict=True):
        assert wait >= 0
        assert end >= came + wait + needs - 1e-6, "nothing is faster than fixed_share"
    paid = sum(ended.at - ended.process.started_at for ended in cluster.take_exits())
    assert model.worker_s == pytest.approx(paid)


def check(cluster: SimCluster, model: ModelSim, now: float) -> None:
    ready = [worker for worker in cluster.workers.values() if worker.stage is Stage.READY]
    held = [number for worker in ready for _, number in worker.running]
    assert len(held) == len(set(held)) == model.running
    assert all(len(worker.running) <= model.profile.batch for worker in ready)
    assert model.ready == len(ready)
    assert model.starting == sum(worker.stage is Stage.STARTING for worker in cluster.workers.values())
    free = any(len(worker.running) < model.profile.batch for worker in ready)
    assert not (free and model.queued), "nobody waits beside a worker that has room"
    left = sum(
        end - worker.work_done_s - (now - worker.updated_at) / model.profile.slowdowns[len(worker.running) - 1]
        for worker in ready
        for end, _ in worker.running
    )
    left += sum(task.remaining_s for task in model.preempted) + sum(model.work[model.head : model.tail])
    assert model.advance_work(now) == pytest.approx(left, abs=1e-6)
