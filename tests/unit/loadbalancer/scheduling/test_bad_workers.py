"""Well-formed but wrong messages of workers: they are counted and have bounded effects."""

from __future__ import annotations

import pytest
from pydantic import ByteSize

from configs.sections import Queue, Workers
from loadbalancer.scheduling.events import Effect, SendMessage, TasksSubmitted
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import TaskCompleted, TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from tests.support.scheduler import (
    IMAGE,
    INPUTS,
    PNG,
    assignments,
    connect,
    log_lines,
    new_scheduler,
    progress_updates,
    receive,
    task,
    updates,
)
from wire.messages import (
    PROTOCOL,
    Bye,
    Capacity,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    Preempted,
    Progress,
    Reject,
    Started,
)


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
    for wrong in (Finished("t", 1, IMAGE), Progress("t", 1, 3, 20), Preempted("t", 1), Finished("none", 1, IMAGE)):
        assert updates(receive(core, "other", wrong, 1.0, (b"forged",) * wrong.frames)) == []
    assert updates(receive(core, "honest", Finished("t", 2, IMAGE), 1.0, (PNG,))) == []
    assert core.counters["stale"] == 5
    assert len(updates(receive(core, "honest", Finished("t", 1, IMAGE), 2.0, (PNG,)))) == 2
    assert updates(receive(core, "honest", Finished("t", 1, IMAGE), 3.0, (PNG,))) == []
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


def submit(core: Scheduler, count: int = 1) -> None:
    core.handle(TasksSubmitted([task(f"t{number}") for number in range(count)]), 0.0)


def return_invalid(core: Scheduler, worker: str, now: float = 1.0, image: bytes = b"<html>") -> list[Effect]:
    """Let the worker return an invalid image for its first task."""
    name, attempt = next(iter(core.registry.workers[worker].assigned.items()))
    return receive(core, worker, Finished(name, attempt, IMAGE), now, (image,))


@pytest.mark.parametrize("image", [b"", b"<html>", b"\xff\xd8\xff jpeg"])
def test_invalid_image_is_made_again(image: bytes) -> None:
    core = new_scheduler()
    connect(core, "bad", 1)
    submit(core)
    connect(core, "good", 1)
    effects = return_invalid(core, "bad", image=image)
    assert not any(isinstance(update, TaskCompleted) for update in updates(effects))
    [(worker, given)] = assignments(effects)
    assert (worker, given.attempt) == ("bad", 2), "one is treated as chance"
    [line] = log_lines(effects)
    assert "worker bad returned no valid result" in line
    effects = return_invalid(core, "bad", image=image)
    [(worker, given)] = assignments(effects)
    assert (worker, given.attempt) == ("good", 3)
    [done] = [
        u for u in updates(receive(core, "good", Finished("t0", 3, IMAGE), 2.0, (PNG,))) if isinstance(u, TaskCompleted)
    ]
    assert done.image == PNG
    assert {name: core.counters[name] for name in ("invalid_results", "workers_faulty", "done", "failed")} == {
        "invalid_results": 2,
        "workers_faulty": 1,
        "done": 1,
        "failed": 0,
    }


def test_task_without_valid_image_fails_with_the_reason() -> None:
    core = new_scheduler(Queue(max_attempts=1))
    connect(core, "bad", 1)
    submit(core)
    [end] = [update for update in updates(return_invalid(core, "bad")) if isinstance(update, TaskEnded)]
    assert (end.state, end.kind) == (TaskState.FAILED, "error")
    assert end.message.endswith("returned no valid result: it is no image, not png")
    assert core.tasks == {}


def test_faulty_worker_is_rejected_and_its_other_tasks_move() -> None:
    core = new_scheduler()
    connect(core, "bad", 3)
    submit(core, 3)
    return_invalid(core, "bad")
    effects = return_invalid(core, "bad")
    [reject] = [e.message for e in effects if isinstance(e, SendMessage) and isinstance(e.message, Reject)]
    assert reject == Reject("2 invalid results in a row", fatal=True)
    assert "bad" not in core.registry.workers
    assert all(known.state is TaskState.QUEUED for known in core.tasks.values())
    assert sum(known.crashes for known in core.tasks.values()) == 2, "the other tasks are not the cause"
    connect(core, "bad", 3)
    assert "bad" not in core.registry.workers, "the same process stays rejected"
    restarted = Hello(PROTOCOL, "bad", "m", "sim:0", 2)
    receive(core, "bad", restarted)
    assert "bad" in core.registry.workers


def test_valid_image_ends_a_row_of_invalid_ones() -> None:
    core = new_scheduler(Queue(max_tasks=100, max_attempts=100))
    connect(core, "w", 1)
    submit(core, 10)
    for _ in range(10):
        return_invalid(core, "w")
        name, attempt = next(iter(core.registry.workers["w"].assigned.items()))
        receive(core, "w", Finished(name, attempt, IMAGE), 2.0, (PNG,))
    assert core.counters["done"] == core.counters["invalid_results"] == 10
    assert core.counters["workers_faulty"] == 0


def test_log_lines_about_invalid_results_are_bounded() -> None:
    core = new_scheduler(Queue(max_tasks=100, max_attempts=100))
    connect(core, "w", 1)
    submit(core)
    lines = []
    for pid in range(1, 50):
        receive(core, "w", Hello(PROTOCOL, "w", "m", "sim:0", pid))
        receive(core, "w", Capacity(1))
        lines += [line for _ in range(2) for line in log_lines(return_invalid(core, "w"))]
    assert core.counters["invalid_results"] == 98
    assert sum("no valid result" in line for line in lines) == 1


def test_texts_of_workers_are_cut_and_printable() -> None:
    core = new_scheduler(Queue(max_attempts=1))
    connect(core, "w", 2)
    submit(core, 2)
    effects = receive(core, "w", Failed("t0", 1, "invalid", "X" * 300_000 + "\x1b[31m"), 1.0)
    receive(core, "w", Started("t1", 1), 1.0)
    effects += receive(core, "w", Bye("two\nlines\x1b[31m" + "x" * 300_000, crashed=True), 2.0)
    ends = [update for update in updates(effects) if isinstance(update, TaskEnded)]
    assert [end.task for end in ends] == ["t0", "t1"]
    assert all(end.message.isprintable() and len(end.message) < 1100 for end in ends)


def test_worker_with_unprintable_names_is_rejected() -> None:
    core = new_scheduler()
    [reject, _] = receive(core, "w", Hello(PROTOCOL, "w", "m", "cuda:0\x1b[2J", 1))
    assert isinstance(reject, SendMessage)
    assert reject.message == Reject("its device name has characters that are not printable", fatal=True)


def test_oversized_checkpoints_and_invalid_previews_are_dropped() -> None:
    core = new_scheduler(workers=Workers(max_result_bytes=ByteSize(1 << 20)))
    connect(core, "w", 1)
    submit(core)
    receive(core, "w", Progress("t0", 1, 3, 20, frames=2), 1.0, (bytes(1 << 20), b"x"))
    receive(core, "w", Progress("t0", 1, 4, 20, preview=True, frames=1), 1.0, (b"<html>",))
    assert core.tasks["t0"].checkpoint == ()
    receive(core, "w", Preempted("t0", 1, 5, 2), 2.0, (bytes(1 << 20), b"x"))
    assert (core.tasks["t0"].checkpoint, core.tasks["t0"].step) == ((), 0)
    assert (core.counters["oversized_checkpoints"], core.counters["invalid_previews"]) == (2, 1)
