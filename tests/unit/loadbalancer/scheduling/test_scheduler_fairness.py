"""The scheduler: preemption, rebalancing, stuck workers and rejected requests."""

from __future__ import annotations

import pytest

from configs.sections import Queue, Workers
from loadbalancer.scheduling.events import SendMessage, TasksCancelled, TasksSubmitted, Tick, WorkerLost
from loadbalancer.scheduling.task import Checkpoint, DeadlineUnreachable, QueueFull, TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from tests.support.scheduler import (
    CURVES,
    IMAGE,
    PNG,
    assignments,
    connect,
    log_lines,
    new_scheduler,
    preempt_requests,
    receive,
    sent_frames,
    task,
    updates,
)
from wire.inputs import Shape
from wire.messages import (
    Cancel,
    Capacity,
    Finished,
    Heartbeat,
    Preempted,
    Progress,
    Started,
    StepCurve,
    ToBalancer,
    WorkerCounters,
)


def test_preempted_task_resumes_where_it_was() -> None:
    core = new_scheduler()
    connect(core, "w", 2)
    core.handle(TasksSubmitted([task("1"), task("2")]), 0.0)
    for name, step in (("1", 5), ("2", 9)):
        receive(core, "w", Progress(name, 1, step, 20), 1.0)
    core.handle(TasksSubmitted([task("urgent", 1.0, priority=1)]), 1.0)
    effects = core.handle(Tick(), 1.0)
    assert preempt_requests(effects) == [("w", "1")]
    [note] = log_lines(effects)
    assert note == "task 1 leaves w at step 5 of 20: priority 0 is preempted by urgent of priority 1"
    assert preempt_requests(core.handle(Tick(), 1.1)) == [], "once is enough"
    placed = assignments(receive(core, "w", Preempted("1", 1, step=6, frames=1), 1.2, (b"state",)))
    assert [given.task for _, given in placed] == ["urgent"]
    receive(core, "w", Started("urgent", 1), 1.2)
    placed = assignments(receive(core, "w", Finished("urgent", 1, IMAGE), 2.0, (PNG,)))
    assert [(given.task, given.step, given.frames) for _, given in placed] == [("1", 6, 1)]
    assert (core.counters["preempted"], core.counters["steps_redone"]) == (1, 0)


def test_new_worker_gets_half_of_the_running_tasks() -> None:
    core = new_scheduler()
    connect(core, "a", 4)
    receive(core, "a", Heartbeat(running=0, curves=CURVES))
    core.handle(TasksSubmitted([task(name) for name in "1234"]), 0.0)
    for name in "1234":
        receive(core, "a", Started(name, 1), 0.0)
    assert preempt_requests(core.handle(Tick(), 1.0)) == []
    connect(core, "b", 4, 1.0)
    assert preempt_requests(core.handle(Tick(), 1.0)) == [], "nothing is known of it yet"
    receive(core, "b", Heartbeat(running=0, curves=CURVES), 1.1)
    moving = preempt_requests(core.handle(Tick(), 1.2))
    assert moving == [("a", "1"), ("a", "2")]
    assert preempt_requests(core.handle(Tick(), 1.3)) == []
    for worker, name in moving:
        [(target, given)] = assignments(receive(core, worker, Preempted(name, 1, step=8, frames=1), 1.4, (b"state",)))
        assert (target, given.step) == ("b", 8)
        receive(core, "b", Started(name, 2), 1.5)
    assert preempt_requests(core.handle(Tick(), 9.0)) == [], "it has come to rest"
    assert (core.counters["rebalanced"], core.counters["steps_redone"]) == (2, 0)


@pytest.mark.parametrize(
    ("config", "grouped"),
    [(Queue(preempt_margin=None, rebalance=False), ()), (Queue(), ("m",)), (Queue(rebalance=False), ())],
)
def test_disabled_preemption_moves_nothing(config: Queue, grouped: tuple[str, ...]) -> None:
    core = new_scheduler(config, grouped=grouped)
    for worker in ("a", "b"):
        connect(core, worker, 4)
        receive(core, worker, Heartbeat(running=0, curves=CURVES))
    receive(core, "b", Capacity(0))
    core.handle(TasksSubmitted([task(name) for name in "1234"]), 0.0)
    for name in "1234":
        receive(core, "a", Started(name, 1), 0.0)
    if config.preempt_margin is None or grouped:
        core.handle(TasksSubmitted([task("urgent", priority=9)]), 0.0)
        assert preempt_requests(core.handle(Tick(), 1.0)) == []
        core.handle(TasksCancelled(["urgent"], "gone"), 1.0)
    receive(core, "b", Capacity(4), 1.0)
    assert preempt_requests(core.handle(Tick(), 1.0)) == []


def beat(steps: int) -> Heartbeat:
    return Heartbeat(running=1, step_s=0.5, batch=1.0, counters=WorkerCounters(steps=steps))


def test_silent_workers_are_counted_apart_from_those_that_ended() -> None:
    core = new_scheduler(workers=Workers(lost_after_s=5.0))
    for name in ("silent", "ended"):
        connect(core, name, 1)
    core.handle(WorkerLost("ended", "its process has ended"), 1.0)
    assert (core.counters["workers_lost"], core.counters["workers_silent"]) == (1, 0)
    for second in range(1, 8):
        core.handle(Tick(), float(second))
    assert (core.counters["workers_lost"], core.counters["workers_silent"]) == (2, 1)


def test_stuck_workers_tasks_resume_on_another() -> None:
    core = new_scheduler(workers=Workers(stuck_factor=20.0, stuck_min_s=5.0))
    connect(core, "w", 1)
    core.handle(TasksSubmitted([task("t")]), 0.0)
    receive(core, "w", Progress("t", 1, 3, 20, frames=1), 0.5, (b"state",))
    receive(core, "w", beat(3), 1.0)
    for second in range(2, 11):
        receive(core, "w", beat(3), float(second))
        assert log_lines(core.handle(Tick(), float(second))) == [], "not before 20 times its step of 0.5 s"
    receive(core, "w", beat(3), 11.5)
    effects = core.handle(Tick(), 11.5)
    assert log_lines(effects) == ["worker w is stuck: it sends heartbeats, but it made no step for 10.5 s"]
    assert SendMessage("w", Cancel(["t"])) in effects
    assert [core.registry.state(w, 11.5) for w in core.registry] == ["stuck"]
    assert (core.counters["workers_stuck"], core.tasks["t"].crashes) == (1, 1)
    assert log_lines(core.handle(Tick(), 11.6)) == [], "it is said once"
    [(worker, given)] = assignments(connect(core, "other", 1, 12.0))
    assert (worker, given.step) == ("other", 3)
    # It wakes up: a step shows in its heartbeat, its old task is of no interest, and its slot is free again.
    receive(core, "w", beat(4), 13.0)
    assert [core.registry.state(w, 13.0) for w in core.registry if w.id == "w"] == ["ready"]
    assert updates(receive(core, "w", Finished("t", 1, IMAGE), 13.0, (PNG,))) == []
    assert core.registry.workers["w"].free_slots == 1


@pytest.mark.parametrize("sign", ["step", "finished", "message", "idle", "silent", "was silent", "new work"])
def test_signs_of_progress_prevent_stuck(sign: str) -> None:
    core = new_scheduler(workers=Workers(stuck_factor=2.0, stuck_min_s=5.0))
    connect(core, "w", 2)
    if sign != "idle":
        core.handle(TasksSubmitted([task("t")]), 0.0 if sign != "new work" else 8.0)
    if sign != "was silent":
        receive(core, "w", beat(1), 1.0 if sign == "silent" else 6.0)
    signs: dict[str, ToBalancer] = {
        "step": beat(2),
        "finished": Heartbeat(1, counters=WorkerCounters(steps=1, finished=1)),
        "message": Progress("t", 1, 1, 20),
        "was silent": Heartbeat(running=1),
    }
    if sign in signs:
        receive(core, "w", signs[sign], 6.5)
    core.handle(Tick(), 9.0)
    assert core.counters["workers_stuck"] == 0


def test_task_that_hangs_workers_fails() -> None:
    core = new_scheduler(Queue(max_attempts=2), Workers(stuck_min_s=5.0))
    core.handle(TasksSubmitted([task("t")]), 0.0)
    for attempt, name in ((1, "a"), (2, "b")):
        connect(core, name, 1, 10.0 * attempt)
        receive(core, name, Started("t", attempt), 10.0 * attempt)
        for later in (2, 4, 6, 8):
            receive(core, name, Heartbeat(running=1), 10.0 * attempt + later)
        effects = core.handle(Tick(), 10.0 * attempt + 8)
    [ended] = updates(effects)
    assert isinstance(ended, TaskEnded)
    assert ended.state is TaskState.FAILED


def test_unreachable_deadline_is_rejected_with_its_eta() -> None:
    core = new_scheduler(Queue(deadline_slack=1.5))
    core.handle(TasksSubmitted([task("unmeasured", timeout_s=0.1)]), 0.0)
    connect(core, "w", 1)
    receive(core, "w", Heartbeat(running=1, curves=[StepCurve(Shape("64x64", 4096), 1, [(1, 0.5)])]))
    core.handle(TasksSubmitted([task("1"), task("2")]), 0.0)
    # 40 steps wait and 20 are its own, at half a second each.
    with pytest.raises(DeadlineUnreachable, match=r"about 30 s, the request allows 19 s") as refusal:
        core.handle(TasksSubmitted([task("late", timeout_s=19.0)]), 0.0)
    assert refusal.value.eta_s == pytest.approx(30.0)
    assert refusal.value.retry_after_s == pytest.approx(11.0)
    core.handle(TasksSubmitted([task("in time", timeout_s=20.1)]), 0.0)
    assert core.counters["deadline_unreachable"] == 1
    # Another owner's request does not wait behind these.
    newcomer = task("newcomer", timeout_s=19.0)
    newcomer.owner = "other"
    core.handle(TasksSubmitted([newcomer]), 0.0)


def test_the_queue_is_bounded_in_seconds_of_work() -> None:
    core = new_scheduler(Queue(max_work_s=30.0))
    connect(core, "w", 0)
    core.handle(TasksSubmitted([task(str(n)) for n in range(9)]), 0.0)  # nothing is measured yet
    core.handle(TasksCancelled([str(n) for n in range(9)], "gone"), 0.0)
    receive(core, "w", Heartbeat(running=0, curves=[StepCurve(Shape("64x64", 4096), 1, [(1, 0.5)])]))
    core.handle(TasksSubmitted([task("large"), task("request")]), 0.0)
    core.handle(TasksSubmitted([task("fits")]), 0.0)
    with pytest.raises(QueueFull, match=r"30 s of work are waiting, the limit is 30 s") as refusal:
        core.handle(TasksSubmitted([task("more")]), 0.0)
    assert refusal.value.retry_after_s == pytest.approx(10.0)
    assert core.counters["refused"] == 1


def test_task_of_an_earlier_process_resumes() -> None:
    core = new_scheduler()
    resumed = task("t")
    resumed.resume_from(Checkpoint(12, 20, (b"state",)))
    core.handle(TasksSubmitted([resumed]), 0.0)
    effects = connect(core, "w", 1)
    [(_, given)] = assignments(effects)
    assert (given.step, given.frames, sent_frames(effects)) == (12, 1, [b"state"])
    core.handle(WorkerLost("w", "killed"), 1.0)
    assert (core.tasks["t"].step, core.counters["steps_redone"]) == (12, 0)


def test_flood_of_one_owner_does_not_delay_another() -> None:
    core = new_scheduler()
    connect(core, "w", 1)
    core.handle(TasksSubmitted([task(f"flood{n}") for n in range(50)]), 0.0)
    single = task("single", 5.0)
    single.owner = "other"
    core.handle(TasksSubmitted([single]), 5.0)
    [running] = core.registry.workers["w"].assigned
    placed = [given.task for _, given in assignments(receive(core, "w", Finished(running, 1, IMAGE), 6.0, (PNG,)))]
    assert placed == ["single"]
