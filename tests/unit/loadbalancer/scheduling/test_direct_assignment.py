"""Tasks that go to a worker at once, without a place in the queue: the result is as if each had waited there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.scheduling.events import TasksCancelled, TasksSubmitted
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TaskState
from tests.support.scheduler import IMAGE, INPUTS, PNG, assignments, connect, new_scheduler, receive, task
from wire.messages import Finished

SUBMITTED = st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 9))


@given(st.lists(st.one_of(SUBMITTED, st.integers(0, 9)), max_size=40), st.integers(1, 4))
def test_order_and_charges_are_those_of_the_queue(moves: list[tuple[str, int, float, int] | int], slots: int) -> None:
    core, queue, held, made = new_scheduler(), ModelQueue(100), list[str](), 0
    connect(core, "w", slots)
    for now, move in enumerate(moves, start=1):
        if isinstance(move, tuple):
            owner, count, weight, steps = move
            made += 1
            tasks = [
                Task(f"{made:03}-{i}", "m", INPUTS, float(now), 1e9, owner=owner, weight=weight, steps=steps)
                for i in range(count)
            ]
            for each in tasks:
                queue.push(each)
            effects = core.handle(TasksSubmitted(tasks), float(now))
        elif held:
            ended = held.pop(move % len(held))
            effects = receive(core, "w", Finished(ended, 1, IMAGE), float(now), (PNG,))
        else:
            continue
        for _, given_task in assignments(effects):
            first = queue.first()
            assert first is not None
            assert first.id == given_task.task
            queue.take(first)
            held.append(first.id)
        assert core.queues["m"].count == queue.count
        assert [core.queues["m"]._shares.tag(owner) for owner in "abc"] == [queue._shares.tag(owner) for owner in "abc"]


@pytest.mark.parametrize(("slots", "isolated", "hold_s"), [(0, False, 0.0), (2, True, 0.0), (2, False, 1.0)])
def test_what_cannot_start_at_once_waits(slots: int, isolated: bool, hold_s: float) -> None:
    core, made = new_scheduler(hold_s=hold_s), task("t")
    connect(core, "w", slots)
    core.handle(TasksSubmitted([task("busy")]), 0.0)
    if isolated:
        made.on_crash(3)
        made.on_crash(3)
    made.may_be_running = hold_s > 0
    assert assignments(core.handle(TasksSubmitted([made]), 0.0)) == []
    assert (made.state, core.queues["m"].count) == (TaskState.QUEUED, 1 + (slots == 0))
    core.handle(TasksCancelled(["t", "busy"], "gone"), 0.0)
    assert core.queues["m"].count == 0


def test_owners_of_tasks_that_start_at_once_are_forgotten() -> None:
    core = new_scheduler()
    connect(core, "w", 1)
    for number in range(1000):
        name = f"t{number}"
        core.handle(TasksSubmitted([Task(name, "m", INPUTS, 0.0, 1e9, owner=f"o{number // 2}", steps=20)]), 0.0)
        receive(core, "w", Finished(name, 1, IMAGE), 0.0, (PNG,))
    assert len(core.queues["m"]._shares._tags) < 150
