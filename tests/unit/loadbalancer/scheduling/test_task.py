"""The table of transitions."""

from __future__ import annotations

import itertools

import pytest

from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TRANSITIONS, InvalidTransition, TaskState
from tests.support.scheduler import INPUTS


def test_every_state_is_listed_and_reachable() -> None:
    assert set(TRANSITIONS) == set(TaskState)
    reached = {TaskState.QUEUED}
    for _ in TaskState:
        reached |= set(itertools.chain.from_iterable(TRANSITIONS[state] for state in reached))
    assert reached == set(TaskState)


@pytest.mark.parametrize(("start", "to"), list(itertools.product(TaskState, TaskState)))
def test_only_listed_transitions_are_allowed(start: TaskState, to: TaskState) -> None:
    task = Task("t", "m", INPUTS, 0.0, 1.0, state=start)
    if to in TRANSITIONS[start]:
        task.transition(to, 1.0, "why not")
        assert task.state is to
        assert list(task.history) == [(1.0, to, "why not", None, 0)]
    else:
        with pytest.raises(InvalidTransition, match=f"task t: {start.value} -> {to.value} is not allowed"):
            task.transition(to, 1.0, "why not")
        assert task.state is start


def test_invalid_transition_quotes_the_history() -> None:
    task = Task("t", "m", INPUTS, 0.0, 1.0)
    task.transition(TaskState.ASSIGNED, 1.0, "to w1, attempt 1")
    task.transition(TaskState.DONE, 2.5, "finished")
    with pytest.raises(InvalidTransition, match=r"1\.000 assigned \(to w1, attempt 1\), 2\.500 done \(finished\)"):
        task.transition(TaskState.RUNNING, 3.0, "late")
    assert task.is_finished
