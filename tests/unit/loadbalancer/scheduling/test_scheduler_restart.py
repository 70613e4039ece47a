"""A restarted balancer: workers continue the tasks of the process before it."""

from __future__ import annotations

import pytest

from configs.scaling import Scaling
from configs.sections import Queue, Workers
from loadbalancer.scheduling.events import (
    Effect,
    NotifyListener,
    SendMessage,
    TasksCancelled,
    TasksSubmitted,
    Tick,
    WorkerLost,
)
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Checkpoint, Task, TaskCompleted
from loadbalancer.scheduling.task_state import TaskState
from tests.support.scheduler import IMAGE, PNG, assignments, connect, new_scheduler, receive, task, updates
from wire.messages import PROTOCOL, Cancel, Capacity, Finished, Heartbeat, Hello, Preempted, Progress, Started

HOLD_S = 3.0


def resumed(*names: str, begun: bool = True) -> Scheduler:
    """A balancer that has just read these from the disk."""
    core = new_scheduler(hold_s=HOLD_S)
    core.handle(TasksSubmitted([_resumed(name, begun) for name in names]), 0.0)
    return core


def _resumed(name: str, begun: bool = True) -> Task:
    again = task(name)
    again.may_be_running = begun
    again.resume_from(Checkpoint(5, 20, [b"state"]))
    return again


def cancels(effects: list[Effect]) -> list[str]:
    return [
        name
        for e in effects
        if isinstance(e, SendMessage) and isinstance(e.message, Cancel)
        for name in e.message.tasks
    ]


def test_claimed_task_continues_and_its_image_counts() -> None:
    core = resumed("t")
    effects = connect(core, "w", 4, 0.1, {"t": 2})
    assert (assignments(effects), cancels(effects)) == ([], [])
    assert core.registry.workers["w"].assigned == {"t": 2}
    assert core.tasks["t"].state is TaskState.ASSIGNED
    receive(core, "w", Progress("t", 2, 11, 20), 0.2)
    assert (core.tasks["t"].state, core.tasks["t"].step) == (TaskState.RUNNING, 11)
    [done] = [
        u for u in updates(receive(core, "w", Finished("t", 2, IMAGE), 0.3, (PNG,))) if isinstance(u, TaskCompleted)
    ]
    assert done.image == PNG
    assert receive(core, "w", Finished("t", 2, IMAGE), 0.4, (PNG,)) == [], "once"
    assert core.counters["resumed"] == 1
    assert core.counters["steps_redone"] == 0


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        ({"unknown": 1}, "nobody waits for it"),
        ({"given": 7}, "it was given to another meanwhile"),
        ({"t": 0}, "no attempt was ever 0"),
        ({"t": 2**31 - 1}, "nor so high"),
    ],
)
def test_invalid_claim_is_cancelled(claim: dict[str, int], why: str) -> None:
    core = resumed("given")
    connect(core, "quick", 1, 0.0)
    [(_, given)] = assignments(core.handle(Tick(), HOLD_S))
    core.handle(TasksSubmitted([_resumed("t")]), HOLD_S)
    effects = connect(core, "w", 0, HOLD_S, claim)
    assert cancels(effects) == list(claim), why
    assert core.registry.workers["w"].assigned == {}
    [name] = claim
    assert receive(core, "w", Finished(name, claim[name], IMAGE), HOLD_S, (PNG,)) == []
    assert core.counters["stale"] == 1
    assert (core.tasks["given"].worker, core.tasks["given"].attempt) == ("quick", given.attempt)
    assert core.tasks["t"].state is TaskState.QUEUED


def test_claim_of_another_models_worker_is_cancelled() -> None:
    core = Scheduler({"m": Scaling(), "n": Scaling()}, Queue(), Workers(), hold_s=HOLD_S)
    core.handle(TasksSubmitted([_resumed("t")]), 0.0)
    effects = receive(core, "w", Hello(PROTOCOL, "w", "n", "sim:0", 1, [("t", 1)]))
    assert cancels(effects) == ["t"]
    assert core.tasks["t"].state is TaskState.QUEUED


def test_first_of_two_claims_continues() -> None:
    core = resumed("t")
    connect(core, "a", 1, 0.0, {"t": 1})
    assert cancels(connect(core, "b", 1, 0.1, {"t": 4})) == ["t"]
    assert receive(core, "b", Finished("t", 4, IMAGE), 0.2, (PNG,)) == []
    [(worker, given)] = assignments(core.handle(WorkerLost("a", "killed"), HOLD_S))
    assert (worker, given.attempt, given.step) == ("b", 5, 5), "from the checkpoint"
    assert receive(core, "b", Finished("t", 1, IMAGE), HOLD_S, (PNG,)) == []
    assert any(
        isinstance(u, TaskCompleted) for u in updates(receive(core, "b", Finished("t", 5, IMAGE), HOLD_S, (PNG,)))
    )


def test_no_assignments_before_claims_can_arrive() -> None:
    core = resumed("t", "u")
    assert assignments(connect(core, "idle", 4, 0.1)) == []
    assert cancels(connect(core, "w", 4, 1.0, {"t": 1})) == []
    assert assignments(core.handle(Tick(), HOLD_S - 0.1)) == []
    assert [(w, a.task) for w, a in assignments(core.handle(Tick(), HOLD_S))] == [("idle", "u")]


def test_assignments_start_once_all_is_claimed() -> None:
    core = resumed("t")
    core.handle(TasksSubmitted([task("plain")]), 0.0)
    assert assignments(connect(core, "idle", 4, 0.1)) == []
    assert [(w, a.task) for w, a in assignments(connect(core, "w", 4, 0.2, {"t": 1}))] == [("idle", "plain")]


def test_task_assigned_by_this_process_is_not_claimed() -> None:
    core = resumed("t")
    connect(core, "quick", 1, HOLD_S)
    core.handle(WorkerLost("quick", "killed"), HOLD_S)
    assert (core.tasks["t"].state, core.tasks["t"].attempt) == (TaskState.QUEUED, 1)
    effects = connect(core, "w", 1, HOLD_S, {"t": 1})
    assert cancels(effects) == ["t"]
    assert [(a.task, a.attempt) for _, a in assignments(effects)] == [("t", 2)]


def test_unstarted_task_is_assigned_at_once() -> None:
    core = resumed("t", begun=False)
    assert [a.task for _, a in assignments(connect(core, "w", 4, 0.1))] == ["t"]


def test_worker_that_reconnects_twice_keeps_its_claim() -> None:
    core = resumed("t")
    connect(core, "w", 1, 0.0, {"t": 1})
    assert cancels(connect(core, "w", 1, 0.1, {"t": 1})) == []
    assert core.registry.workers["w"].assigned == {"t": 1}
    effects = connect(core, "w", 1, HOLD_S, {})
    assert [(a.task, a.attempt, a.step) for _, a in assignments(effects)] == [("t", 2, 5)], "it came back without it"


@pytest.mark.parametrize(("attempt", "again"), [(1, ("t", 3)), (2, None)])
def test_worker_that_has_missed_an_assignment_gets_another(attempt: int, again: tuple[str, int] | None) -> None:
    """It was stuck, and the second assignment of its task got lost with the connection."""
    core = new_scheduler()
    connect(core, "w", 2)
    core.handle(TasksSubmitted([task("t")]), 0.0)
    now = 1.0
    while core.tasks["t"].state is not TaskState.QUEUED:
        receive(core, "w", Heartbeat(0), now)
        core.handle(Tick(), now)
        now += 1.0
    receive(core, "w", Started("t", 1), now)
    assert core.registry.workers["w"].assigned == {"t": 2}
    effects = connect(core, "w", 2, now, {"t": attempt})
    assert [(given.task, given.attempt) for _, given in assignments(effects)] == ([again] if again else [])
    assert cancels(effects) == (["t"] if again else [])


def test_claimed_tasks_end_like_others() -> None:
    core = resumed("t", "u", "v")
    connect(core, "w", 4, 0.0, {"t": 1, "u": 2, "v": 3})
    assert cancels(core.handle(TasksCancelled(["t"], "cancelled"), 0.1)) == ["t"]
    receive(core, "w", Preempted("t", 1), 0.2)
    [(_, given)] = assignments(receive(core, "w", Preempted("u", 2, 9, 1), 0.2, (b"newer",)))
    assert (given.task, given.attempt, given.step) == ("u", 3, 9)
    assert core.registry.workers["w"].assigned == {"u": 3, "v": 3}
    assert cancels(core.handle(Tick(), 1001.0)) == ["u", "v"], "their time is over"
    assert not core.tasks


def test_claimed_tasks_take_slots() -> None:
    core = resumed("t", "u", "x")
    connect(core, "w", 2, 0.0, {"t": 1, "u": 1})
    receive(core, "w", Capacity(2), HOLD_S)
    assert core.registry.workers["w"].free_slots == 0
    freed = receive(core, "w", Finished("t", 1, IMAGE), HOLD_S + 1, (PNG,))
    assert [(w, a.task) for w, a in assignments(freed)] == [("w", "x")]
    assert sum(isinstance(e, NotifyListener) and isinstance(e.update, TaskCompleted) for e in freed) == 1
