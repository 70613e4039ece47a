"""The simulated pool on small cases that were worked out by hand, and its books over random histories."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.simulator.cluster import Pool
from controller.simulator.model_sim import Service, Station, slow_downs
from controller.types import Stage

INF = math.inf


def pool_of(times: list[float], work: list[float], **options: Any) -> tuple[Pool, Station]:
    station = Station(Service("m", **options), times, work)
    return Pool({"m": station}), station


def run(pool: Pool, station: Station, until: float = INF) -> None:
    """Everything that happens up to a time, arrivals among it."""
    while True:
        coming = station.times[station.tail] if station.tail < len(station.times) else INF
        if min(pool.next_at, coming) > until or min(pool.next_at, coming) == INF:
            return
        if pool.next_at <= coming:
            pool.step()
        else:
            pool.arrive(station)


def test_slow_downs() -> None:
    assert slow_downs(4, 0.25) == (1.0, 1.75, 2.5, 3.25)
    assert slow_downs(2, 1.0) == (1.0, 1.0)


def test_one_worker_does_one_after_the_other() -> None:
    pool, station = pool_of([0.0, 1.0, 9.0], [4.0, 2.0, 1.0])
    pool.start("m", "cuda:0", 0.0, ready=True)
    run(pool, station)
    assert station.waits == [0.0, 3.0, 0.0]
    assert station.ends == [4.0, 6.0, 10.0]


def test_two_tasks_share_a_worker() -> None:
    # Alone from 0 to 2, then both at half speed: the second has its 1 s at 4.
    pool, station = pool_of([0.0, 2.0], [4.0, 1.0], slow=(1.0, 2.0))
    pool.start("m", "cuda:0", 0.0, ready=True)
    run(pool, station)
    assert station.waits == [0.0, 0.0]
    # The first then has 1 s left, and the worker to itself.
    assert station.ends == [5.0, 4.0]


def test_a_batch_without_slow_down_is_as_fast_as_alone() -> None:
    pool, station = pool_of([0.0, 0.0, 1.0], [3.0, 2.0, 1.0], slow=(1.0, 1.0))
    pool.start("m", "cuda:0", 0.0, ready=True)
    run(pool, station)
    assert station.waits == [0.0, 0.0, 1.0]
    assert station.ends == [3.0, 2.0, 3.0]


def test_the_least_busy_worker_is_next() -> None:
    pool, station = pool_of([0.0, 0.0, 0.0], [5.0, 5.0, 5.0], slow=(1.0, 1.5, 2.0))
    for number in range(2):
        pool.start("m", f"cuda:{number}", 0.0, ready=True)
    run(pool, station, 0.0)
    assert sorted(len(worker.running) for worker in pool.workers.values()) == [1, 2]


def test_a_cold_start_is_paid_for_and_waited_for() -> None:
    pool, station = pool_of([0.0], [2.0], cold_starts_s=(40.0,), max_wait_s=10.0)
    pool.start("m", "cuda:0", 5.0)
    run(pool, station)
    assert station.waits == [45.0]
    assert station.ends == [47.0]
    assert (station.late, station.starts) == (1, 1)
    (worker,) = pool.workers
    pool.drain(worker, 50.0)
    run(pool, station)
    assert station.worker_s == 51.0 - 5.0


def test_a_drained_worker_hands_over_what_it_has_done() -> None:
    pool, station = pool_of([0.0, 0.5], [10.0, 1.0], leave_s=0.5)
    pool.start("m", "cuda:0", 0.0, ready=True)
    (first,) = pool.workers
    run(pool, station, 4.0)
    pool.drain(first, 4.0)
    pool.start("m", "cuda:1", 4.0, ready=True)
    run(pool, station)
    # Six seconds were left of the first, which goes before the other.
    assert station.ends == [10.0, 11.0]
    assert station.waits == [0.0, 9.5]
    assert [(ended.child.id, ended.at, ended.status) for ended in pool.exits] == [(first, 4.5, 0)]


def test_a_worker_that_still_loads_goes_at_once() -> None:
    pool, station = pool_of([], [])
    pool.start("m", "cuda:0", 0.0)
    (worker,) = pool.workers
    pool.drain(worker, 10.0)
    run(pool, station)
    assert station.worker_s == 10.0
    assert not pool.workers
    assert station.history == [(0.0, 1, 0), (10.0, 0, 0)]


def test_a_death_costs_the_progress_since_the_last_checkpoint() -> None:
    pool, station = pool_of([0.0], [10.0])
    pool.start("m", "cuda:0", 0.0, ready=True)
    (worker,) = pool.workers
    run(pool, station, 0.0)
    pool.kill(worker, 4.0)
    pool.start("m", "cuda:0", 4.0, ready=True)
    run(pool, station)
    assert station.ends == [11.0]
    assert (station.deaths, pool.exits[0].status) == (1, -9)
    assert station.waits == [0.0], "it waited once only, for its first worker"


def test_a_spare_serves_sooner() -> None:
    pool, station = pool_of([60.0], [1.0], cold_starts_s=(40.0,), standby_s=5.0)
    pool.start_spare("m", "cuda", 0.0)
    (spare,) = station.spares
    run(pool, station, 60.0)
    assert not pool.workers, "a spare holds no device"
    assert station.worker_s == 0
    pool.activate(spare, "m", "cuda:0", 60.0)
    run(pool, station)
    assert station.waits == [5.0]
    (replica,) = [worker.seen() for worker in pool.workers.values()]
    assert (replica.started_in_s, replica.from_standby) == (5.0, True)


def test_what_is_seen_follows_the_life() -> None:
    pool, station = pool_of([0.0], [5.0], cold_starts_s=(3.0,))
    pool.start("m", "cuda:0", 0.0)
    (worker,) = pool.workers.values()
    assert (worker.seen().stage, worker.seen().load) == (Stage.STARTING, 0)
    run(pool, station, 4.0)
    assert (worker.seen().stage, worker.seen().load, worker.seen().child.ready_at) == (Stage.READY, 1, 3.0)
    pool.drain(worker.child.id, 4.0)
    assert (worker.seen().stage, worker.seen().load) == (Stage.DRAINING, 0)


def test_work_left_is_what_queue_and_workers_hold() -> None:
    pool, station = pool_of([0.0, 0.0, 0.0], [4.0, 4.0, 4.0], slow=(1.0, 2.0))
    pool.start("m", "cuda:0", 0.0, ready=True)
    run(pool, station, 0.0)
    assert station.remaining_s(0.0) == pytest.approx(12.0)
    # Two at half speed are one second of work a second.
    assert station.remaining_s(3.0) == pytest.approx(9.0)
    assert (station.queued, station.running) == (1, 2)


HISTORY = st.lists(
    st.tuples(st.sampled_from(["start", "now", "drain", "kill", "wait"]), st.integers(0, 5), st.floats(0.0, 9.0)),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=30),
    batch=st.integers(1, 4),
    alone=st.floats(0, 1),
    history=HISTORY,
)
def test_nothing_is_lost_whatever_happens(
    gaps: list[float], batch: int, alone: float, history: list[tuple[str, int, float]]
) -> None:
    times = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    work = [1.0 + number % 3 for number in range(len(gaps))]
    pool, station = pool_of(times, work, slow=slow_downs(batch, alone), cold_starts_s=(2.0, 7.0))
    born: dict[str, float] = {}
    paid, now = 0.0, 0.0
    for what, which, seconds in history:
        names = sorted(pool.workers)
        if what in ("start", "now"):
            pool.start("m", "cuda:0", now, ready=what == "now")
        elif names and what == "drain":
            pool.drain(names[which % len(names)], now)
        elif names and what == "kill":
            pool.kill(names[which % len(names)], now)
        now += seconds
        run(pool, station, now)
        born |= {name: worker.child.started_at for name, worker in pool.workers.items()}
        check(pool, station, now)
    pool.start("m", "cuda:0", now, ready=True)
    run(pool, station)
    assert station.done == len(times)
    assert not any(map(math.isnan, station.ends + station.waits))
    for came, wait, end, needs in zip(times, station.waits, station.ends, work, strict=True):
        assert wait >= 0
        assert end >= came + wait + needs - 1e-6, "nothing is faster than alone"
    paid = sum(ended.at - ended.child.started_at for ended in pool.exits)
    assert station.worker_s == pytest.approx(paid)


def check(pool: Pool, station: Station, now: float) -> None:
    ready = [worker for worker in pool.workers.values() if worker.stage is Stage.READY]
    held = [number for worker in ready for _, number in worker.running]
    assert len(held) == len(set(held)) == station.running
    assert all(len(worker.running) <= station.service.batch for worker in ready)
    assert station.ready == len(ready)
    assert station.starting == sum(worker.stage is Stage.STARTING for worker in pool.workers.values())
    free = any(len(worker.running) < station.service.batch for worker in ready)
    assert not (free and station.queued), "nobody waits beside a worker that has room"
    left = sum(
        end - worker.done_s - (now - worker.at) / station.service.slow[len(worker.running) - 1]
        for worker in ready
        for end, _ in worker.running
    )
    left += sum(task.left_s for task in station.returned) + sum(station.work[station.head : station.tail])
    assert station.remaining_s(now) == pytest.approx(left, abs=1e-6)
