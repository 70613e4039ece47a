"""The queue's look-ups that avoid a look at each task give what such a look would."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.task import Task
from tests.support.scheduler import INPUTS

#: Creation time, priority, owner, steps left, isolated; None: the task at this place leaves.
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.floats(0, 100), st.integers(-2, 2), st.sampled_from("xyz"), st.integers(0, 3), st.integers(0, 2)),
        st.integers(0, 30),
    ),
    max_size=60,
)


@given(CHANGES, st.booleans())
def test_oldest_first_and_sums_are_those_of_the_tasks(
    changes: list[tuple[float, int, str, int, int] | int], takes: bool
) -> None:
    queue, waiting = ModelQueue(1000), list[Task]()
    for number, change in enumerate(changes):
        if isinstance(change, tuple):
            created, priority, owner, steps, crashes = change
            made = Task(f"t{number}", "m", INPUTS, created, 1e9, priority, owner, steps=max(steps, 1), crashes=crashes)
            made.step = 0 if steps else 1
            queue.push(made)
            waiting.append(made)
        elif waiting:
            leaving = waiting.pop(change % len(waiting))
            (queue.take if takes else queue.remove)(leaving)
        assert queue.count == len(waiting)
        assert queue.oldest() == min((task.created for task in waiting), default=None)
        assert +Counter(queue.steps) == +Counter({INPUTS.shape: sum(task.remaining_steps for task in waiting)})
        assert sorted(task.id for task in queue) == sorted(task.id for task in waiting)
        for owner in "xyz":
            own = [task for task in waiting if task.owner == owner and not task.isolated]
            in_order = sorted(own, key=lambda task: (task.created - 60.0 * task.priority, task.created, task.id))
            assert queue.first_of_owner(owner, 3) == in_order[:3]
            assert queue.owner_tasks(owner) == len(own)


def test_ages_of_tasks_that_left_do_not_pile_up() -> None:
    queue = ModelQueue(10)
    queue.push(Task("stays", "m", INPUTS, 0.0, 1.0))
    for number in range(5000):
        task = Task(f"t{number}", "m", INPUTS, float(number), 1e9)
        queue.push(task)
        queue.remove(task)
    assert len(queue._ages) < 2000
    assert queue.oldest() == 0.0
