"""Queueing formulas: the fraction of late arrivals, rates with a margin, and workers for a backlog."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.scaling import Scaling
from controller.policies.queueing import (
    ArrivalHistory,
    arrival_rate,
    late_fraction,
    rate_bound,
    workers_for_backlog,
    workers_for_rate,
)
from controller.types import Observation, Queue, Replica, Stage
from host.types import WorkerProcess
from wire.snapshot import ArrivalBucket

SCALING = Scaling(drain_s=20, look_back_period_s=90)


def erlang_c(servers: int, offered: float) -> float:
    """Return the probability that an arrival waits, for workers with a batch of one."""
    return late_fraction(servers, offered, 1.0, 1, 1.0, 0.0)


def by_definition(servers: int, offered: float) -> float:
    """Return Erlang C by its textbook definition, which is accurate for a few servers."""
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize(("servers", "offered"), [(1, 0.3), (1, 0.99), (2, 1.0), (5, 3.7), (12, 11.5), (40, 33.3)])
def test_erlang_c_equals_its_definition(servers: int, offered: float) -> None:
    assert erlang_c(servers, offered) == pytest.approx(by_definition(servers, offered), rel=1e-6)


@pytest.mark.parametrize(
    ("servers", "offered", "expected"),
    [
        (1, 1e-9, 0.0),
        (3, 3.0, 1.0),
        (3, 9.0, 1.0),
        # By the normal approximation of Halfin and Whitt: 1 / (1 + b * cdf(b) / pdf(b)), b = (c - a) / sqrt(a).
        (1000, 968.4, 0.2230),
        (32_000, 31_821.3, 0.2234),
    ],
)
def test_erlang_c_at_its_limits(servers: int, offered: float, expected: float) -> None:
    assert erlang_c(servers, offered) == pytest.approx(expected, abs=2e-3)


@given(st.integers(1, 300), st.floats(0.01, 299))
def test_erlang_c_is_a_decreasing_probability(servers: int, offered: float) -> None:
    fewer, more = erlang_c(servers, offered), erlang_c(servers + 1, offered)
    assert 0 <= more <= fewer + 1e-8 <= 1 + 1e-8


def late_by_definition(
    workers: int, rate: float, work_s: float, batch: int, batch_slowdown: float, patience_s: float
) -> float:
    """Solve the balance equations of the birth-death process, state by state, with the queue cut where it is empty."""
    places = workers * batch

    def served_rate(tasks: int) -> float:
        on_each = max(min(tasks, places) / workers, 1.0)
        slowdown = 1 + (batch_slowdown - 1) * (on_each - 1) / max(batch - 1, 1)
        return min(tasks, places) / (work_s * slowdown)

    full_rate = served_rate(places)
    if rate >= full_rate:
        return 1.0
    states = [1.0]
    while len(states) <= places or states[-1] > 1e-12 * sum(states):
        states.append(states[-1] * rate / served_rate(len(states)))
    return sum(states[places:]) / sum(states) * math.exp(-(full_rate - rate) * patience_s)


@given(
    st.integers(1, 6),
    st.floats(0.05, 0.95),
    st.floats(0.1, 30),
    st.integers(1, 8),
    st.floats(0, 1),
    st.floats(0, 60),
)
def test_late_fraction_solves_the_balance_equations(
    workers: int, load: float, work_s: float, batch: int, growth: float, patience_s: float
) -> None:
    batch_slowdown = 1 + growth * (batch - 1)
    rate = load * workers * batch / (work_s * batch_slowdown)
    expected = late_by_definition(workers, rate, work_s, batch, batch_slowdown, patience_s)
    assert late_fraction(workers, rate, work_s, batch, batch_slowdown, patience_s) == pytest.approx(
        expected, rel=1e-4, abs=1e-8
    )


def test_a_batch_that_is_not_full_is_faster() -> None:
    # A batch of four that takes as long as its tasks one after the other is one server: M/M/1 waits for a place only
    # with four tasks present. Four servers that are each four times as slow would wait more often.
    assert late_fraction(1, 0.5, 1.0, 4, 4.0, 0.0) == pytest.approx(0.5**4, rel=1e-3)
    assert late_fraction(4, 0.5, 4.0, 1, 1.0, 0.0) > 2 * 0.5**4


@pytest.mark.parametrize(
    ("rate", "work_s", "batch", "patience_s", "allowed", "max_workers", "workers"),
    [
        (0.0, 5.0, 1, 10, 0.1, 8, 0),
        (0.1, 0.0, 1, 10, 0.1, 8, 0),
        (0.1, 1.0, 1, 10, 0.1, 8, 1),
        (1.0, 4.0, 1, 10, 0.1, 8, 5),
        # A lower late fraction, a shorter allowed wait or a smaller batch needs more workers.
        (1.0, 4.0, 1, 10, 0.001, 8, 7),
        (1.0, 4.0, 1, 0, 0.1, 8, 8),
        (1.0, 4.0, 4, 10, 0.1, 8, 2),
        (1.0, 4.0, 1, 10, 0.1, 4, 5),
        (100.0, 4.0, 1, 10, 0.1, 8, 9),
        (200.0, 5.0, 1, 10, 0.01, 2000, 1003),
    ],
)
def test_workers_for_a_rate(
    rate: float, work_s: float, batch: int, patience_s: float, allowed: float, max_workers: int, workers: int
) -> None:
    assert workers_for_rate(rate, work_s, batch, 1.0, patience_s, allowed, max_workers) == workers


@given(
    st.floats(0.01, 20),
    st.floats(0.1, 30),
    st.integers(1, 8),
    st.floats(0, 1),
    st.floats(0, 60),
    st.floats(0.001, 0.9),
)
def test_workers_for_a_rate_are_the_fewest(
    rate: float, work_s: float, batch: int, growth: float, patience_s: float, allowed: float
) -> None:
    batch_slowdown = 1 + growth * (batch - 1)

    def is_enough(workers: int) -> bool:
        return late_fraction(workers, rate, work_s, batch, batch_slowdown, patience_s) <= allowed

    enough = next(n for n in itertools.count(1) if is_enough(n))
    assert workers_for_rate(rate, work_s, batch, batch_slowdown, patience_s, allowed, enough + 5) == enough


def test_rate_bound_solves_the_equation_of_an_upper_bound() -> None:
    for count, margin in itertools.product((0, 3, 100), (0.0, 1.0, 3.0)):
        mean = rate_bound(count, 900.0, margin) * 900.0
        assert mean - margin * math.sqrt(mean) == pytest.approx(count, abs=1e-9)


@pytest.mark.parametrize(
    ("recent", "long_window", "uptime_s", "expected_recent", "expected"),
    [
        (90, 900, 5000, 1.0, 1.0),
        (45, 900, 5000, 0.5, 1.0),
        # The uptime is shorter than the window.
        (90, 200, 200, 1.0, 1.0),
        (0, 180, 200, 0.0, 0.9),
        (45, 45, 45, 1.0, 1.0),
        # The uptime is too short for an estimate.
        (1, 1, 1, 1 / 30, 1 / 30),
    ],
)
def test_rates_are_counts_per_observed_time(
    recent: int, long_window: int, uptime_s: float, expected_recent: float, expected: float
) -> None:
    queue = Queue(0, 0, arrivals_short_window=recent, arrivals_long_window=long_window, uptime_s=uptime_s)
    assert queue.recent_rate(SCALING.look_back_period_s) == pytest.approx(expected_recent)
    assert arrival_rate(queue, SCALING, 0.0, ArrivalHistory()) == pytest.approx(expected)


#: 24 arrivals in two hours: 3 in 900 s.
TWO_HOURS = ArrivalHistory(24.0, 7200.0)


@pytest.mark.parametrize(
    ("recent", "long_window", "uptime_s", "history", "expected"),
    [
        pytest.param(0, 3, 9e3, TWO_HOURS, rate_bound(24, 7200, 2.0), id="the bound of two hours"),
        pytest.param(1, 3, 9e3, TWO_HOURS, rate_bound(24, 7200, 2.0), id="one recent arrival is chance"),
        pytest.param(9, 9, 9e3, TWO_HOURS, 6 / 90, id="nine are not, less one standard deviation"),
        pytest.param(0, 12, 9e3, TWO_HOURS, 12 / 900, id="more within the window than before"),
        pytest.param(0, 15, 9e3, ArrivalHistory(120.0, 7200.0), rate_bound(120, 7200, 2.0), id="just quiet"),
        pytest.param(0, 16, 9e3, ArrivalHistory(120.0, 7200.0), rate_bound(16, 900, 2.0), id="not quiet"),
        pytest.param(0, 0, 9e3, ArrivalHistory(500.0, 7200.0), rate_bound(0, 900, 2.0), id="busy before, quiet now"),
        pytest.param(0, 3, 9e3, ArrivalHistory(6.0, 1800.0), rate_bound(3, 900, 2.0), id="known for two windows only"),
        pytest.param(0, 3, 450.0, ArrivalHistory(3.0, 440.0), rate_bound(3, 450, 2.0), id="known for less than that"),
        pytest.param(1, 1, 20.0, TWO_HOURS, 1 / 90, id="the balancer has just begun"),
    ],
)
def test_arrivals_of_a_quiet_model(
    recent: int, long_window: int, uptime_s: float, history: ArrivalHistory, expected: float
) -> None:
    queue = Queue(0, 0, arrivals_short_window=recent, arrivals_long_window=long_window, uptime_s=uptime_s)
    assert arrival_rate(queue, SCALING, 2.0, history) == pytest.approx(expected)


def test_arrival_history_tends_to_the_rate_of_the_last_hours() -> None:
    history = ArrivalHistory()
    for rate, hours in ((0.02, 2), (0.01, 20)):
        for _ in range(round(hours * 3600 * rate)):
            history = history.updated(1, 1 / rate)
        assert history.count / history.seconds == pytest.approx(rate, rel=0.02)
    assert 0.98 * 4 * 3600 < history.seconds < 4 * 3600
    assert history.updated(0, 0.0) == history


def observe(
    queue: Queue | None, ready: int, started_at: tuple[float, ...] = (), draining: int = 0, owed: int = 0
) -> Observation:
    stages = [(Stage.READY, 0.0)] * ready + [(Stage.STARTING, at) for at in started_at]
    stages += [(Stage.DRAINING, 0.0)] * draining
    replicas = [Replica(WorkerProcess(f"w{i}", "m", f"sim:{i}", i, at), stage) for i, (stage, at) in enumerate(stages)]
    return Observation("m", queue, replicas, owed, cold_start_s=40.0)


@pytest.mark.parametrize(
    ("queued", "work_s", "recent", "ready", "started_at", "draining", "owed", "batch", "slowdown", "workers"),
    [
        # Without queued tasks no workers are needed.
        (0, 500.0, 90, 1, (), 0, 0, 1, 1.0, 0),
        (5, None, 90, 1, (), 0, 0, 1, 1.0, 0),
        # One worker does 60 s of work until 20 s after another start.
        (5, 60.0, 0, 1, (), 0, 0, 1, 1.0, 1),
        (5, 61.0, 0, 1, (), 0, 0, 1, 1.0, 2),
        (5, 161.0, 0, 1, (), 0, 0, 1, 1.0, 7),
        # The result is at least the provisioned number.
        (5, 10.0, 0, 4, (), 0, 0, 1, 1.0, 4),
        # A worker started at 80 s is ready at 120 s, so from 100 s on it serves 40 of 60 s.
        (5, 100.0, 0, 1, (80.0,), 0, 0, 1, 1.0, 2),
        (5, 101.0, 0, 1, (80.0,), 0, 0, 1, 1.0, 3),
        # An overdue start counts fully; a pending replacement counts as if it started now.
        (5, 120.0, 0, 1, (10.0,), 0, 0, 1, 1.0, 2),
        (5, 80.0, 0, 1, (), 0, 1, 1, 1.0, 2),
        (5, 81.0, 0, 1, (), 0, 1, 1, 1.0, 3),
        # A draining one is none.
        (5, 61.0, 0, 1, (), 3, 0, 1, 1.0, 2),
        # New arrivals: one task of 2 s per second.
        (5, 60.0, 90, 3, (), 0, 0, 1, 1.0, 3),
        (5, 61.0, 90, 3, (), 0, 0, 1, 1.0, 4),
        # Batches of 4, each task 2 times slower: twice the speed.
        (5, 120.0, 0, 1, (), 0, 0, 4, 2.0, 1),
        (5, 121.0, 0, 1, (), 0, 0, 4, 2.0, 2),
        # From zero workers.
        (1, 4.0, 0, 0, (), 0, 0, 1, 1.0, 1),
        (9, 81.0, 0, 0, (), 0, 0, 1, 1.0, 5),
    ],
)
def test_workers_for_a_backlog(
    queued: int,
    work_s: float | None,
    recent: int,
    ready: int,
    started_at: tuple[float, ...],
    draining: int,
    owed: int,
    batch: int,
    slowdown: float,
    workers: int,
) -> None:
    queue = Queue(queued, 1, batch, slowdown, work_s, 2.0, recent, recent, oldest_wait_s=11.0, uptime_s=1000)
    observation = observe(queue, ready, started_at, draining, owed)
    assert workers_for_backlog(observation, SCALING, now=100.0) == workers


@pytest.mark.parametrize(
    ("work_s", "recent", "ready", "started_at", "owed", "batch", "oldest_wait_s", "workers"),
    [
        # In a cold start of 40 s one worker does 40 s of work, and 10 s more before a task is late.
        (50.0, 0, 1, (), 0, 1, 0.0, 0),
        (51.0, 0, 1, (), 0, 1, 0.0, 1),
        (71.0, 0, 1, (), 0, 1, 0.0, 2),
        # A task is late already.
        (50.0, 0, 1, (), 0, 1, 10.0, 0),
        (50.0, 0, 1, (), 0, 1, 10.1, 1),
        # Starting workers and pending replacements are ready by then.
        (60.0, 0, 1, (100.0,), 0, 1, 0.0, 0),
        (61.0, 0, 1, (100.0,), 0, 1, 0.0, 2),
        (60.0, 0, 1, (), 1, 1, 0.0, 0),
        (61.0, 0, 1, (), 1, 1, 0.0, 2),
        # New arrivals: one task of 2 s per second.
        (70.0, 90, 3, (), 0, 1, 0.0, 0),
        (71.0, 90, 3, (), 0, 1, 0.0, 4),
        # Batches of 4, each task 2 times slower: twice the speed.
        (100.0, 0, 1, (), 0, 4, 0.0, 0),
        (101.0, 0, 1, (), 0, 4, 0.0, 1),
    ],
)
def test_backlog_without_late_tasks_needs_no_workers(
    work_s: float,
    recent: int,
    ready: int,
    started_at: tuple[float, ...],
    owed: int,
    batch: int,
    oldest_wait_s: float,
    workers: int,
) -> None:
    slowdown = 2.0 if batch > 1 else 1.0
    queue = Queue(5, 1, batch, slowdown, work_s, 2.0, recent, recent, oldest_wait_s=oldest_wait_s, uptime_s=1000)
    observation = observe(queue, ready, started_at, owed=owed)
    assert workers_for_backlog(observation, SCALING, now=100.0) == workers


@pytest.mark.parametrize(
    ("cold_start_s", "usual", "workers"),
    [
        (5.0, 27, 7),  # 30 + 4 * 20 - 3 * 20 seconds of work in 15 s
        (5.0, 3600, 5),  # no step: the last 15 s minus chance are 3/s, and it takes 20 s
        (11.0, 27, 5),  # a start takes longer than the allowed wait
    ],
)
def test_sudden_step_is_cleared_fast(cold_start_s: float, usual: int, workers: int) -> None:
    buckets = [ArrivalBucket(second, 4, 4.0, 1.0) for second in range(985, 1000)]
    queue = Queue(
        30, 3, 1, 1.0, 30.0, 1.0, 60, usual + 60, oldest_wait_s=11.0, uptime_s=1000.0, recent_arrivals=buckets
    )
    observation = replace(observe(queue, 3), cold_start_s=cold_start_s)
    assert workers_for_backlog(observation, SCALING, now=100.0) == workers


@pytest.mark.parametrize(
    ("max_wait_s", "workers"),
    [
        (5.0, 10),  # 5 + 16/3 * 55 - 4 * 55 seconds of work in 15 s, three allowed waits
        (0.5, 12),  # 5 + 16/3 * 50 - 4 * 50 in 10 s, a quarter of the start; in three allowed waits it would be 45
    ],
)
def test_what_gathers_during_a_start_is_not_cleared_within_much_less(max_wait_s: float, workers: int) -> None:
    queue = Queue(20, 4, 1, 1.0, 5.0, 1.0, 480, 4800, oldest_wait_s=6.0, uptime_s=1000.0)
    scaling = Scaling(drain_s=20, look_back_period_s=90, slo={"max_wait_s": max_wait_s})
    assert workers_for_backlog(observe(queue, 4), scaling, now=100.0) == workers


def test_missing_data_needs_no_workers() -> None:
    assert workers_for_backlog(observe(None, 1), SCALING, 0.0) == 0


def test_a_long_running_task_orders_no_workers() -> None:
    queue = Queue(2, 3, 1, 1.0, 620.0, 10.0, uptime_s=5000.0, oldest_wait_s=1.0)
    observation = observe(queue, ready=3)
    assert workers_for_backlog(observation, SCALING, 1000.0) > 20
    # One of the running tasks has 600 s left. More workers would not end it earlier.
    shared = replace(observation, queue=replace(queue, long_work_s=580.0))
    assert workers_for_backlog(shared, SCALING, 1000.0) == 0
