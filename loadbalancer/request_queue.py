"""Who is next: the waiting tasks of every model, in the order in which they are served.

Order is priority (higher first), then age. A task that comes back from a lost worker takes its old place. Rule: the
queue never looks at workers, and never refuses what was accepted once; `room` is asked before accepting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sortedcontainers import SortedDict

from loadbalancer.task import Task

_Place = tuple[int, float, str]


class ModelQueue:
    """The waiting tasks of one model. Adding, removing and asking for a position take logarithmic time."""

    def __init__(self, max_tasks: int) -> None:
        self.max_tasks = max_tasks
        #: Forward passes that the waiting tasks still need, by the size of their images.
        self.steps: Counter[tuple[int, int]] = Counter()
        self._places: SortedDict[_Place, Task] = SortedDict()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Task]:
        """The waiting tasks in order; safe while tasks are removed."""
        return iter(list(self._places.values()))

    def __repr__(self) -> str:
        return f"<ModelQueue {len(self)} of {self.max_tasks} tasks, {self.steps.total()} steps>"

    def room(self) -> int:
        """How many more tasks may be accepted."""
        return max(self.max_tasks - len(self), 0)

    def push(self, task: Task) -> None:
        """Add a task at the place that its priority and age give it."""
        self._places[_place(task)] = task
        self.steps[task.size] += task.remaining_steps

    def remove(self, task: Task) -> None:
        """Take a waiting task out. Raises `KeyError` if it does not wait here."""
        del self._places[_place(task)]
        self.steps[task.size] -= task.remaining_steps
        if not self.steps[task.size]:
            del self.steps[task.size]

    def position(self, task: Task) -> int:
        """How many tasks are before it. Raises `KeyError` if it does not wait here."""
        place = _place(task)
        if place not in self._places:
            raise KeyError(task.id)
        return int(self._places.bisect_left(place))

    def oldest(self) -> float | None:
        """When the task that has waited longest was created."""
        return min((task.created for task in self._places.values()), default=None)


def _place(task: Task) -> _Place:
    return (-task.priority, task.created, task.id)
