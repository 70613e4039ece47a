"""The scheduler: from the queue to a result, and failures on the way."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from configs.sections import Queue
from loadbalancer.scheduling.events import NotifyListener, SendMessage, TasksCancelled, TasksSubmitted, Tick, WorkerLost
from loadbalancer.scheduling.task import QueueFull, Task, TaskCompleted, TaskEnded, TaskProgress, TaskStarted
from loadbalancer.scheduling.task_state import TaskState
from tests.support.scheduler import (
    IMAGE,
    PNG,
    assignments,
    connect,
    new_scheduler,
    preempt_requests,
    progress_updates,
    receive,
    sent_frames,
    task,
    updates,
)
from wire.inputs import Shape
from wire.messages import (
    PROTOCOL,
    Assign,
    Bye,
    Cancel,
    Capacity,
    Finished,
    Heartbeat,
    Hello,
    Preempted,
    Progress,
    Reject,
    Started,
    StepCurve,
    WorkerCounters,
)


def test_task_runs_from_submission_to_completion() -> None:
    core = new_scheduler()
    assert assignments(core.handle(TasksSubmitted([task("t")]), 0.0)) == []
    [(worker, given)] = assignments(connect(core, "w", 4))
    assert (worker, given.task, given.attempt, given.isolated) == ("w", "t", 1, False)
    assert updates(receive(core, "w", Started("t", 1), 1.0)) == [TaskStarted("t")]
    assert updates(receive(core, "w", Progress("t", 1, 5, 20), 2.0)) == [TaskProgress("t", 5, 20, None)]
    assert updates(receive(core, "w", Finished("t", 1, IMAGE), 3.0, (PNG,))) == [
        TaskCompleted("t", (PNG,), 1.0, 2.0, parts=IMAGE)
    ]
    assert core.tasks == {}
    assert core.registry.workers["w"].assigned == {}


def test_images_of_one_request_fan_out_over_workers() -> None:
    core = new_scheduler()
    connect(core, "a", 4)
    connect(core, "b", 4)
    placed = assignments(core.handle(TasksSubmitted([task("1"), task("2"), task("3"), task("4")]), 0.0))
    assert sorted(worker for worker, _ in placed) == ["a", "a", "b", "b"]


def test_priority_goes_first_then_age() -> None:
    core = new_scheduler()
    for now, name, priority in [(0.0, "old", 0), (1.0, "young", 0), (2.0, "urgent", 5)]:
        core.handle(TasksSubmitted([task(name, now, priority=priority)]), now)
    assert [a.task for _, a in assignments(connect(core, "w", 3, 3.0))] == ["urgent", "old", "young"]


def test_full_queue_rejects_a_request_as_a_whole() -> None:
    core = new_scheduler(Queue(max_tasks=3))
    core.handle(TasksSubmitted([task("1"), task("2")]), 0.0)
    with pytest.raises(QueueFull, match="2 of 3 tasks are waiting, 2 of them of 'anonymous'") as refusal:
        core.handle(TasksSubmitted([task("3"), task("4")]), 0.0)
    assert 1.0 <= refusal.value.retry_after_s <= 60.0
    assert set(core.tasks) == {"1", "2"}
    core.handle(TasksSubmitted([task("5")]), 0.0)


def test_cancelled_task_frees_its_slot_on_release() -> None:
    core = new_scheduler()
    connect(core, "w", 1)
    core.handle(TasksSubmitted([task("running"), task("waiting")]), 0.0)
    core.handle(TasksCancelled(["waiting"], "gone"), 1.0)
    assert core.queues["m"].count == 0
    core.handle(TasksSubmitted([task("next", 1.0)]), 1.0)
    effects = core.handle(TasksCancelled(["running"], "gone"), 2.0)
    assert SendMessage("w", Cancel(["running"])) in effects
    assert assignments(effects) == [], "the slot is taken until the worker releases it"
    assert [a.task for _, a in assignments(receive(core, "w", Preempted("running", 1), 2.1))] == ["next"]


def test_lost_workers_tasks_keep_their_order() -> None:
    core = new_scheduler()
    connect(core, "a", 2)
    core.handle(TasksSubmitted([task("1", 0.0)]), 0.0)
    core.handle(TasksSubmitted([task("2", 1.0)]), 1.0)
    core.handle(TasksSubmitted([task("3", 2.0)]), 2.0)
    receive(core, "a", Started("1", 1), 2.0)
    core.handle(WorkerLost("a", "killed"), 3.0)
    placed = assignments(connect(core, "b", 3, 4.0))
    assert [(a.task, a.attempt) for _, a in placed] == [("1", 2), ("2", 2), ("3", 1)]


def test_silent_worker_gets_no_tasks_then_loses_its_own() -> None:
    core = new_scheduler()
    connect(core, "w", 2, 0.0)
    core.handle(TasksSubmitted([task("held")]), 0.0)
    receive(core, "w", Started("held", 1), 0.0)
    assert assignments(core.handle(TasksSubmitted([task("new", 5.0)]), 5.0)) == []
    core.handle(Tick(), 10.5)
    assert core.registry.workers == {}
    assert core.tasks["held"].state is TaskState.QUEUED
    # Its late result is stale: the balancer asks for a Hello, and the task stays in the queue.
    effects = receive(core, "w", Finished("held", 1, IMAGE), 11.0, (PNG,))
    assert updates(effects) == []
    assert any(isinstance(e, SendMessage) and isinstance(e.message, Reject) and not e.message.fatal for e in effects)


def test_task_that_kills_workers_is_isolated_then_fails() -> None:
    core = new_scheduler(Queue(max_attempts=3))
    core.handle(TasksSubmitted([task("poison")]), 0.0)
    for attempt in (1, 2, 3):
        [(_, given)] = assignments(connect(core, f"w{attempt}", 4, float(attempt)))
        assert (given.attempt, given.isolated) == (attempt, attempt == 3)
        receive(core, f"w{attempt}", Started("poison", attempt), float(attempt))
        if attempt == 3:
            assert assignments(core.handle(TasksSubmitted([task("innocent", 3.0)]), 3.0)) == [], (
                "the worker is reserved"
            )
        last = core.handle(WorkerLost(f"w{attempt}", "signal 9"), float(attempt))
    [ended] = updates(last)
    assert isinstance(ended, TaskEnded)
    assert ended.state is TaskState.FAILED
    assert ended.message.startswith("3 workers died while they ran this task")
    assert set(core.tasks) == {"innocent"}


@pytest.mark.parametrize("max_attempts", [2, 3, 4])
def test_task_beside_one_that_kills_workers_does_not_fail(max_attempts: int) -> None:
    """The last attempt of each is isolated, so that only the cause of the deaths is taken for it."""
    core = new_scheduler(Queue(max_attempts=max_attempts))
    core.handle(TasksSubmitted([task("poison"), task("innocent")]), 0.0)
    ended: list[TaskEnded] = []
    for number in range(12):
        name, now = f"w{number}", float(number)
        connect(core, name, 4, now)
        running = dict(core.registry.workers[name].assigned)
        for own, attempt in running.items():
            receive(core, name, Started(own, attempt), now)
        if running.keys() == {"innocent"}:
            receive(core, name, Finished("innocent", running["innocent"], IMAGE), now, (PNG,))
        effects = core.handle(WorkerLost(name, "signal 9"), now)
        ended += [each for each in updates(effects) if isinstance(each, TaskEnded)]
    assert [(each.task, each.state) for each in ended] == [("poison", TaskState.FAILED)]
    assert (core.counters["done"], core.tasks) == (1, {})


def test_isolated_task_waits_for_an_empty_worker() -> None:
    core = new_scheduler()
    suspect = task("suspect")
    suspect.on_crash(3)
    suspect.on_crash(3)
    connect(core, "a", 4)
    connect(core, "b", 4)
    core.handle(TasksSubmitted([task(name) for name in "12345"]), 0.0)
    core.handle(TasksSubmitted([suspect]), 1.0)
    reserved = next(w for w in core.registry if w.reserved_for == "suspect")
    assert len(reserved.assigned) == 2
    free = next(w for w in core.registry if w.reserved_for is None)
    assert {w for w, _ in assignments(core.handle(TasksSubmitted([task("6", 2.0)]), 2.0))} == {free.id}
    for name, attempt in list(reserved.assigned.items()):
        effects = receive(core, reserved.id, Finished(name, attempt, IMAGE), 3.0, (PNG,))
    assert [(w, a.task, a.isolated) for w, a in assignments(effects)] == [(reserved.id, "suspect", True)]


@pytest.mark.parametrize(
    ("deaths", "crashes", "isolated", "state"),
    [
        (2, 0, False, TaskState.QUEUED),
        (3, 1, False, TaskState.QUEUED),
        (4, 2, True, TaskState.QUEUED),
        (5, 3, True, TaskState.FAILED),
    ],
)
def test_unstarted_task_is_blamed_for_repeated_crashes(
    deaths: int, crashes: int, isolated: bool, state: TaskState
) -> None:
    """A few deaths are chance, and an engine can kill its worker before the message about the start has left."""
    core, poison = new_scheduler(), task("t")
    core.handle(TasksSubmitted([poison]), 0.0)
    for n in range(deaths):
        connect(core, f"w{n}", 1)
        core.handle(WorkerLost(f"w{n}", "killed"), 1.0)
    assert (poison.crashes, poison.isolated, poison.state) == (crashes, isolated, state)


def test_unstarted_task_is_innocent_while_others_run() -> None:
    core = new_scheduler()
    core.handle(TasksSubmitted([task("runs"), task("waits")]), 0.0)
    for n in range(2):
        effects = connect(core, f"w{n}", 2)
        attempt = {given.task: given.attempt for _, given in assignments(effects)}["runs"]
        receive(core, f"w{n}", Started("runs", attempt), 1.0)
        core.handle(WorkerLost(f"w{n}", "killed"), 1.0)
    assert (core.tasks["runs"].crashes, core.tasks["waits"].crashes, core.tasks["waits"].unstarted_crashes) == (2, 0, 0)


def test_preempted_task_resumes_on_another_worker() -> None:
    core = new_scheduler()
    connect(core, "a", 1)
    core.handle(TasksSubmitted([task("t")]), 0.0)
    receive(core, "a", Started("t", 1))
    receive(core, "a", Capacity(0))
    receive(core, "a", Preempted("t", 1, step=7, frames=1), 1.0, (b"latents",))
    receive(core, "a", Bye("drained"), 1.0)
    effects = connect(core, "b", 1, 2.0)
    [(_, given)] = assignments(effects)
    assert (given.step, given.frames, given.attempt) == (7, 1, 2)
    assert [tuple(e.frames) for e in effects if isinstance(e, SendMessage) and isinstance(e.message, Assign)] == [
        (b"latents",)
    ]


@pytest.mark.parametrize(
    ("slots", "now", "ready"), [(1, 0.0, True), (0, 0.0, False), (1, 9.0, False), (None, 0.0, False)]
)
def test_model_is_ready_with_a_live_worker_that_takes_tasks(slots: int | None, now: float, ready: bool) -> None:
    core = new_scheduler()
    if slots is not None:
        connect(core, "w", slots)
    assert core.is_ready("m", now) is ready


@pytest.mark.parametrize("is_silent", [False, True])
def test_urgent_task_waits_for_no_silent_worker(is_silent: bool) -> None:
    core = new_scheduler()
    for name, own in (("busy", "1"), ("idle", "2")):
        connect(core, name, 1)
        core.handle(TasksSubmitted([task(own)]), 0.0)
        receive(core, name, Started(own, 1))
    receive(core, "idle", Finished("2", 1, IMAGE), 0.5, (PNG,))
    for name in ["busy"] if is_silent else ["busy", "idle"]:
        receive(core, name, Heartbeat(1), 9.0)
    effects = core.handle(TasksSubmitted([task("urgent", 9.0, priority=10)]), 9.0) + core.handle(Tick(), 9.0)
    assert [(worker, given.task) for worker, given in assignments(effects)] == (
        [] if is_silent else [("idle", "urgent")]
    )
    assert preempt_requests(effects) == ([("busy", "1")] if is_silent else [])


@pytest.mark.parametrize("state", ["queued", "running"])
def test_late_task_expires_in_any_state(state: str) -> None:
    core = new_scheduler()
    core.handle(TasksSubmitted([task("t", timeout_s=5.0)]), 0.0)
    if state == "running":
        connect(core, "w", 1, 4.0)
        receive(core, "w", Started("t", 1), 4.0)
    effects = core.handle(Tick(), 5.0)
    [ended] = updates(effects)
    assert isinstance(ended, TaskEnded)
    assert (ended.state, f"({state})" in ended.message) == (TaskState.EXPIRED, True)
    assert (SendMessage("w", Cancel(["t"])) in effects) == (state == "running")


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(PROTOCOL + 1, "w", "m", "cpu:0", 1), "protocol"),
        (Hello(PROTOCOL, "other", "m", "cpu:0", 1), "calls itself other"),
        (Hello(PROTOCOL, "w", "nothing", "cpu:0", 1), "no model 'nothing'"),
    ],
)
def test_incompatible_worker_is_rejected(hello: Hello, reason: str) -> None:
    core = new_scheduler()
    [send] = [e for e in receive(core, "w", hello) if isinstance(e, SendMessage)]
    assert isinstance(send.message, Reject)
    assert send.message.fatal
    assert reason in send.message.reason
    assert core.registry.workers == {}


def test_reconnecting_worker_keeps_its_running_tasks() -> None:
    core = new_scheduler()
    connect(core, "w", 4)
    core.handle(TasksSubmitted([task("kept"), task("lost")]), 0.0)
    effects = connect(core, "w", 4, 1.0, running={"kept": 1, "stranger": 1})
    # The lost assignment may still be on its way to this worker.
    assert SendMessage("w", Cancel(["stranger", "lost"])) in effects
    assert [(a.task, a.attempt) for _, a in assignments(effects)] == [("lost", 2)]
    assert core.registry.workers["w"].assigned == {"kept": 1, "lost": 2}


def test_unknown_worker_is_asked_again_after_a_pause() -> None:
    core = new_scheduler()
    core.handle(TasksSubmitted([task("t")]), 0.0)
    times = [0.0] * 50 + [0.4, 0.6, 0.7]
    asked = [
        at
        for at in times
        for effect in receive(core, "w", Progress("old", 1, 5, 20), at)
        if isinstance(effect, SendMessage)
    ]
    assert asked == [0.0, 0.6]
    assert core.counters["unknown_worker"] == len(times)
    assert [(a.task, a.attempt) for _, a in assignments(connect(core, "w", 4, 0.8))] == [("t", 1)]
    core.handle(WorkerLost("w", "killed"), 0.9)
    assert len(receive(core, "w", Heartbeat(running=1), 0.9)) == 1, "it was connected meanwhile"
    core.handle(Tick(), 5.0)
    assert len(receive(core, "w", Heartbeat(running=1), 5.0)) == 1


def test_number_of_unknown_workers_is_bounded() -> None:
    core = new_scheduler()
    asked = sum(len(receive(core, f"w{number}", Heartbeat(running=1))) for number in range(2000))
    assert asked == 1000
    core.handle(Tick(), 1.0)
    assert len(receive(core, "w1999", Heartbeat(running=1), 1.0)) == 1


def test_eta_follows_from_measured_steps() -> None:
    core = new_scheduler()
    connect(core, "w", 2)
    core.handle(TasksSubmitted([task(str(n)) for n in range(4)]), 0.0)
    unknown = core.estimate("2")
    assert unknown is not None
    assert (unknown.state, unknown.position, unknown.eta_s) == (TaskState.QUEUED, 0, None)
    receive(core, "w", Heartbeat(running=2, step_s=0.1, batch=2.0, counters=WorkerCounters(steps=1)))
    last = core.estimate("3")
    assert last is not None
    assert last.position == 1
    assert last.eta_s == pytest.approx(20 / (2 / 0.1) + 20 * 0.1)
    assert core.estimate("unheard of") is None


def test_lost_workers_task_resumes_from_last_checkpoint() -> None:
    core = new_scheduler()
    connect(core, "a", 1)
    one = task("t")
    one.inputs = msgspec.structs.replace(one.inputs, previews=1)
    core.handle(TasksSubmitted([one]), 0.0)
    receive(core, "a", Progress("t", 1, 5, 20, frames=1), 1.0, (b"state at 5",))
    [updates] = progress_updates(
        receive(core, "a", Progress("t", 1, 8, 20, preview=True, frames=2), 1.1, (PNG, b"state at 8"))
    )
    assert (updates.step, updates.preview) == (8, PNG)
    receive(core, "a", Progress("t", 1, 11, 20), 1.2)
    # A checkpoint that arrives late is older than the last one, and changes nothing.
    [late] = progress_updates(receive(core, "a", Progress("t", 1, 6, 20, frames=1), 1.3, (b"state at 6",)))
    assert late.step == 11
    core.handle(WorkerLost("a", "killed"), 2.0)
    assert core.counters["steps_redone"] == 3
    assert core.tasks["t"].step == 8
    effects = connect(core, "b", 1, 3.0)
    [(_, given)] = assignments(effects)
    assert (given.step, given.frames) == (8, 1)
    assert sent_frames(effects) == [b"state at 8"]


def test_sources_are_sent_before_the_checkpoint() -> None:
    core = new_scheduler()
    drawn = task("t", sources=(b"pixels", b"mask"))
    core.handle(TasksSubmitted([drawn]), 0.0)
    effects = connect(core, "a", 1)
    assert assignments(effects)[0][1].frames == 2
    assert sent_frames(effects) == [b"pixels", b"mask"]
    receive(core, "a", Progress("t", 1, 5, 20, frames=1), 1.0, (b"state",))
    core.handle(WorkerLost("a", "killed"), 2.0)
    effects = connect(core, "b", 1, 3.0)
    assert (assignments(effects)[0][1].step, assignments(effects)[0][1].frames) == (5, 3)
    assert sent_frames(effects) == [b"pixels", b"mask", b"state"]


def test_source_images_are_bounded_in_bytes() -> None:
    core = new_scheduler(Queue(max_source_bytes=100 << 14))

    def with_source(name: str, size: int) -> Task:
        return task(name, sources=(bytes(size),))

    def task_of(owner: str, name: str, size: int) -> Task:
        return dataclasses.replace(with_source(name, size), owner=owner)

    core.handle(TasksSubmitted([with_source("a", 60 << 14)]), 0.0)
    with pytest.raises(QueueFull, match="inputs of unfinished requests"):
        core.handle(TasksSubmitted([with_source("b", 60 << 14)]), 0.0)
    others = task_of("other", "e", 45 << 14)
    core.handle(TasksSubmitted([others]), 0.0)  # below its part
    with pytest.raises(QueueFull, match="'other' holds"):
        core.handle(TasksSubmitted([task_of("other", "f", 10 << 14)]), 0.0)
    core.handle(TasksCancelled(["e"], "client went away"), 0.0)
    core.handle(TasksSubmitted([task("c")]), 0.0)
    core.handle(TasksCancelled(["a"], "client went away"), 0.0)
    core.handle(TasksSubmitted([with_source("d", 500 << 14)]), 0.0)  # without others, a large one is accepted


def test_reported_crash_counts_against_running_tasks() -> None:
    core = new_scheduler(Queue(max_attempts=2))
    core.handle(TasksSubmitted([task("t")]), 0.0)
    for name in ("a", "b"):
        connect(core, name, 1)
        receive(core, name, Started("t", core.tasks["t"].attempt), 1.0)
        effects = receive(core, name, Bye("its device is lost", crashed=True), 1.0)
    [ended] = [e.update for e in effects if isinstance(e, NotifyListener)]
    assert isinstance(ended, TaskEnded)
    assert "2 workers died" in ended.message


def test_estimate_uses_the_curve_of_the_size() -> None:
    core = new_scheduler()
    connect(core, "w", 0)
    curves = [
        StepCurve(Shape("64x64", 4096), 4, [(1, 0.1), (4, 0.2), (8, 0.1)]),
        StepCurve(Shape("128x128", 16384), 1, [(1, 1.0)]),
    ]
    receive(core, "w", Heartbeat(running=0, curves=curves))
    core.handle(TasksSubmitted([task("first"), task("second")]), 0.0)
    estimate = core.estimate("second")
    assert estimate is not None
    # 20 steps before it at 4 / 0.2 s, then its own 20 steps of 0.2 s; points above the cap do not count.
    assert estimate.eta_s == pytest.approx(20 / 20 + 20 * 0.2)
