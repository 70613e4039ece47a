"""Background tasks: what fails is restarted, counted and logged, and nothing is lost silently."""

from __future__ import annotations

import asyncio
import inspect
import logging

import pytest
from prometheus_client.core import CounterMetricFamily

from loadbalancer.background_tasks import MAX_RESTART_S, MIN_RESTART_S, TaskSupervisor, restart_delay
from loadbalancer.metrics.counts import CountCollector
from tests.support.log_records import records_of


@pytest.fixture
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadbalancer.background_tasks.MIN_RESTART_S", 0.001)


async def test_a_loop_that_fails_is_run_again(quick_restarts: None, caplog: pytest.LogCaptureFixture) -> None:
    supervisor, done, runs = TaskSupervisor(), asyncio.Event(), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs <= 3:
            raise KeyError("a corrupt row")
        done.set()

    task = supervisor.run_forever("sweep", loop)
    await task
    assert done.is_set()
    assert supervisor.failures == {"sweep": 3}
    assert len(supervisor) == 0
    assert caplog.text.count("background task sweep failed") == 1, "the rate is bounded"
    assert "KeyError: 'a corrupt row'" in caplog.text, "the traceback is there"


async def test_work_that_fails_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = TaskSupervisor()

    async def work() -> None:
        raise ZeroDivisionError

    await supervisor.run_to_completion("job", work())
    assert supervisor.failures == {"job": 1}
    assert "ZeroDivisionError" in caplog.text


async def test_stop_ends_loops_and_pauses() -> None:
    supervisor, started = TaskSupervisor(), asyncio.Event()

    async def fails() -> None:
        started.set()
        raise ValueError

    async def waits() -> None:
        await asyncio.Event().wait()

    tasks = [
        supervisor.run_forever("a", fails),
        supervisor.run_forever("b", waits),
        supervisor.run_to_completion("c", waits()),
    ]
    await started.wait()
    await supervisor.stop()
    assert all(task.done() for task in tasks)
    assert len(supervisor) == 0
    await supervisor.stop()


@pytest.mark.filterwarnings("error")
async def test_work_that_is_cancelled_before_its_start_is_closed() -> None:
    supervisor = TaskSupervisor()

    async def work() -> None:
        raise AssertionError("it has not started")

    coroutine = work()
    supervisor.run_to_completion("a", coroutine)
    await supervisor.stop()
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert supervisor.failures == {}


@pytest.mark.parametrize(
    ("failures", "expected"),
    [(0, MIN_RESTART_S), (1, MIN_RESTART_S), (2, 1.0), (3, 2.0), (7, MAX_RESTART_S), (10**9, MAX_RESTART_S)],
)
def test_pause_before_a_restart(failures: int, expected: float) -> None:
    assert restart_delay(failures) == expected


def test_log_rate_is_bounded_by_kind(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = TaskSupervisor()
    caplog.set_level(logging.ERROR)
    for second in range(25):
        supervisor.record_failure("a", KeyError(), float(second))
    supervisor.record_failure("a", ValueError(), 24.0)
    supervisor.record_failure("b", KeyError(), 24.0)
    assert len(records_of(caplog, "loadbalancer.background_tasks")) == 5
    assert supervisor.failures == {"a": 26, "b": 1}


def test_metric_adds_up_all_components() -> None:
    collector = CountCollector(CounterMetricFamily, "muster_background_task_failures", "Errors.", "task")
    collector.add(lambda: {"sweep": 2, "save": 1})
    collector.add(lambda: {"sweep": 1, "idle": 0})
    (family,) = collector.collect()
    assert {(s.name, s.labels["task"]): s.value for s in family.samples} == {
        ("muster_background_task_failures_total", "save"): 1,
        ("muster_background_task_failures_total", "sweep"): 3,
        ("muster_background_task_failures_total", "idle"): 0,
    }
