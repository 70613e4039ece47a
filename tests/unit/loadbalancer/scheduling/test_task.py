"""The table of states."""

from __future__ import annotations

import itertools

import pytest

from loadbalancer.scheduling.task import MOVES, IllegalMove, State, Task
from wire.messages import ImageInputs

INPUTS = ImageInputs("a seven", 64, 64, steps=20, guidance_scale=3.0, seed=1, scheduler="ddim")


def test_the_table_names_every_state_and_every_state_can_be_reached() -> None:
    assert set(MOVES) == set(State)
    reached = {State.QUEUED}
    for _ in State:
        reached |= set(itertools.chain.from_iterable(MOVES[state] for state in reached))
    assert reached == set(State)


@pytest.mark.parametrize(("start", "to"), list(itertools.product(State, State)))
def test_a_task_moves_by_the_table_and_only_so(start: State, to: State) -> None:
    task = Task("t", "m", INPUTS, 0.0, 1.0, state=start)
    if to in MOVES[start]:
        task.move(to, 1.0, "why not")
        assert task.state is to
        assert list(task.history) == [(1.0, to, "why not")]
    else:
        with pytest.raises(IllegalMove, match=f"task t: {start.value} -> {to.value} is no move"):
            task.move(to, 1.0, "why not")
        assert task.state is start


def test_an_illegal_move_tells_the_tasks_story() -> None:
    task = Task("t", "m", INPUTS, 0.0, 1.0)
    task.move(State.ASSIGNED, 1.0, "to w1, attempt 1")
    task.move(State.DONE, 2.5, "finished")
    with pytest.raises(IllegalMove, match=r"1\.000 assigned \(to w1, attempt 1\), 2\.500 done \(finished\)"):
        task.move(State.RUNNING, 3.0, "late")
    assert task.ended
