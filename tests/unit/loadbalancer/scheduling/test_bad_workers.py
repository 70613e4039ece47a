"""Well-formed but wrong messages of workers: they are counted and have bounded effects."""

from __future__ import annotations

from loadbalancer.scheduling.events import SendMessage, TasksSubmitted
from loadbalancer.scheduling.task import TaskState
from tests.support.scheduler import (
    INPUTS,
    assignments,
    connect,
    log_lines,
    new_scheduler,
    progress_updates,
    receive,
    task,
    updates,
)
from wire.messages import PROTOCOL, Finished, Heartbeat, Hello, Preempted, Progress, Reject


def test_rejected_worker_is_counted_each_time_and_logged_once() -> None:
    core = new_scheduler()
    effects = [receive(core, "w", Hello(PROTOCOL + 1, "w", "m", "sim:0", 1)) for _ in range(3)]
    for each in effects:
        assert [e.message.fatal for e in each if isinstance(e, SendMessage) and isinstance(e.message, Reject)] == [True]
    assert [len(log_lines(each)) for each in effects] == [1, 0, 0]
    assert core.counters["workers_refused"] == 3
    names = [f"w{number}" for number in range(2000)]
    effects += [receive(core, name, Hello(PROTOCOL + 1, name, "m", "sim:0", 1)) for name in names]
    assert sum(len(log_lines(each)) for each in effects) == 1000
    assert not core.registry.workers


def test_worker_that_repeats_its_hello_is_logged_once() -> None:
    core = new_scheduler()
    assert [len(log_lines(connect(core, "w", 4))) for _ in range(3)] == [1, 0, 0]


def test_stale_and_foreign_results_are_counted_and_dropped() -> None:
    core = new_scheduler()
    connect(core, "honest", 1)
    core.handle(TasksSubmitted([task("t")]), 0.0)
    connect(core, "other", 1)
    for wrong in (Finished("t", 1), Progress("t", 1, 3, 20), Preempted("t", 1), Finished("none", 1)):
        assert updates(receive(core, "other", wrong, 1.0, (b"forged",) * wrong.frames)) == []
    assert updates(receive(core, "honest", Finished("t", 2), 1.0, (b"of another attempt",))) == []
    assert core.counters["stale"] == 5
    assert len(updates(receive(core, "honest", Finished("t", 1), 2.0, (b"png",)))) == 2
    assert updates(receive(core, "honest", Finished("t", 1), 3.0, (b"again",))) == []
    assert core.counters["stale"] == 6
    assert (core.counters["done"], core.tasks) == (1, {})


def test_unknown_worker_is_counted_and_asked_for_a_hello() -> None:
    core = new_scheduler()
    [effect] = receive(core, "w", Heartbeat(running=1))
    assert isinstance(effect, SendMessage)
    assert isinstance(effect.message, Reject)
    assert core.counters["unknown_worker"] == 1


def test_reported_steps_are_bounded() -> None:
    core = new_scheduler()
    connect(core, "w", 1)
    core.handle(TasksSubmitted([task("t")]), 0.0)
    receive(core, "w", Progress("t", 1, 2**30, 2**31 - 1), 1.0)
    known = core.tasks["t"]
    assert known.steps <= 20 * INPUTS.steps
    assert known.step <= known.steps


def test_unrequested_previews_are_dropped() -> None:
    core = new_scheduler()
    connect(core, "w", 1)
    core.handle(TasksSubmitted([task("t")]), 0.0)
    wrong = [receive(core, "w", Progress("t", 1, n, 20, True, 1), 1.0, (b"picture",)) for n in range(1, 9)]
    assert [update.preview for effects in wrong for update in progress_updates(effects)] == [None] * 8


def test_history_of_a_task_is_bounded() -> None:
    core = new_scheduler()
    connect(core, "w", 1)
    core.handle(TasksSubmitted([task("t")]), 0.0)
    for attempt in range(1, 1000):
        [(_, given)] = assignments(receive(core, "w", Preempted("t", attempt), 1.0))
        assert given.attempt == attempt + 1
    assert core.tasks["t"].state is TaskState.ASSIGNED
    assert len(core.tasks["t"].history) <= 100
