"""Who is next: the waiting tasks of one model, in the order in which they are served.

Between owners the workers' time is shared in proportion to the owners' weights (`shares`), measured as work: remaining
forward passes times what one costs. Among the tasks of one owner the order is age, and a step of priority counts as
`priority_s` seconds of it. So a task is overtaken only by those that came at most `priority_s` seconds later for each
step of priority above its own: nothing starves.

A task that comes back from a worker takes its old place, and its owner is given back what was not done. A task that
must run alone stands before all others: it waits for a worker to become empty, not for its turn. Rule: the queue never
looks at workers, and never refuses what was accepted once; `room` is asked before accepting.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from sortedcontainers import SortedDict

from loadbalancer.scheduling.fair_share import FairShare
from loadbalancer.scheduling.task import Task

Size = tuple[int, int]
_Place = tuple[float, float, str]


class _Line:
    """The waiting tasks of one owner."""

    def __init__(self) -> None:
        self.places: SortedDict[_Place, Task] = SortedDict()
        self.steps: Counter[Size] = Counter()
        self.weight = 1.0


class ModelQueue:
    """The waiting tasks of one model. Adding, taking and removing take logarithmic time.

    `step_s` is what a forward pass of an image of a size costs, in seconds of one worker.
    """

    def __init__(
        self, max_tasks: int, *, priority_s: float = 60.0, step_s: Callable[[Size], float] = lambda _: 1.0
    ) -> None:
        self.max_tasks = max_tasks
        #: Forward passes that the waiting tasks still need, by the size of their images.
        self.steps: Counter[Size] = Counter()
        self._priority_s = priority_s
        self._step_s = step_s
        self._shares = FairShare()
        self._lines: dict[str, _Line] = {}
        self._lone: SortedDict[_Place, Task] = SortedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Task]:
        """The waiting tasks in the order in which they would be served if nothing else happened."""
        yield from self._lone.values()
        turns = [(self._shares.tag(owner), owner, iter(line.places.values())) for owner, line in self._lines.items()]
        heapq.heapify(turns)
        while turns:
            tag, owner, line = heapq.heappop(turns)
            task = next(line, None)
            if task is not None:
                yield task
                heapq.heappush(turns, (tag + self._cost(task), owner, line))

    def __repr__(self) -> str:
        return f"<ModelQueue {len(self)} of {self.max_tasks} tasks, {self.steps.total()} steps>"

    def room(self, owner: str) -> int:
        """How many more tasks of the owner may be accepted.

        A full queue still takes those of an owner that has less than an equal part of it, so that nobody's flood shuts
        the others out; but never more than twice `max_tasks` in all.
        """
        line = self._lines.get(owner)
        part = self.max_tasks // self.sharers(owner) - (len(line.places) if line else 0)
        return max(self.max_tasks - len(self), min(part, 2 * self.max_tasks - len(self)), 0)

    def sharers(self, owner: str) -> int:
        """How many owners share the queue if this one has something in it."""
        return len(self._lines) + (owner not in self._lines)

    # ---- changes

    def push(self, task: Task) -> None:
        """Add a task at the place that its owner, its priority and its age give it."""
        if task.alone:
            self._lone[self._place(task)] = task
        else:
            line = self._lines.setdefault(task.owner, _Line())
            line.places[self._place(task)] = task
            line.steps[task.size] += task.remaining_steps
            line.weight = task.weight
            self._shares.join(task.owner)
        self.steps[task.size] += task.remaining_steps
        self._count += 1

    def put_back(self, task: Task) -> None:
        """Add a task that was taken: its owner is given back what was not done of it. Set back the task first."""
        self.push(task)
        self.refund(task)

    def remove(self, task: Task) -> None:
        """Take out a task that will not be served. Raises `KeyError` if it does not wait here."""
        self._must_wait(task)
        if task.alone:
            del self._lone[self._place(task)]
        else:
            line = self._lines[task.owner]
            del line.places[self._place(task)]
            _subtract(line.steps, task)
            if not line.places:
                del self._lines[task.owner]
                self._shares.leave(task.owner)
        _subtract(self.steps, task)
        self._count -= 1

    def take(self, task: Task) -> None:
        """Take out a task that goes to a worker; its owner is charged. Raises `KeyError` if it does not wait here."""
        self._must_wait(task)
        if not task.alone:
            self._shares.serve(task.owner)
        self._shares.charge(task.owner, self._cost(task))
        self.remove(task)

    def refund(self, task: Task) -> None:
        """What was not done of a task that was taken costs its owner nothing."""
        self.charge(task, -task.remaining_steps)

    def charge(self, task: Task, steps: int) -> None:
        """A task that was taken needs so many steps more than was known."""
        if steps:
            self._shares.charge(task.owner, steps * self._step_s(task.size) / task.weight)

    def rescale(self, factor: float) -> None:
        """`step_s` has become so many times what it was, all at once: the first step was measured."""
        self._shares.rescale(factor)

    # ---- questions

    def first(self) -> Task | None:
        """The task to serve next, of those that need not be alone."""
        owner = self._shares.first()
        return None if owner is None else self._lines[owner].places.peekitem(0)[1]

    def lone(self) -> list[Task]:
        """The tasks that must run alone, in their order. There are few."""
        return list(self._lone.values())

    def of(self, owner: str, most: int) -> list[Task]:
        """The first tasks of an owner, in their order, those that must be alone left out."""
        line = self._lines.get(owner)
        return list(itertools.islice(line.places.values(), most)) if line else []

    def steps_of(self, owner: str) -> Mapping[Size, int]:
        """Forward passes that the owner's waiting tasks still need, by the size of their images."""
        line = self._lines.get(owner)
        return line.steps if line else {}

    def yields_to(self, running: Task, waiting: Task) -> bool:
        """Whether a running task would stand behind a waiting one of its owner, and that one first, if it came back."""
        owner, first = waiting.owner, self._shares.first()
        if first is None or running.owner != owner or self._place(waiting) > self._place(running):
            return False
        return owner == first or self._shares.tag(owner) - self._cost(running) < self._shares.tag(first)

    def position(self, task: Task) -> int:
        """How many tasks are before it: exact where the tasks of each owner cost the same, else an estimate.

        Takes time in the number of owners. Raises `KeyError` if the task does not wait here.
        """
        self._must_wait(task)
        return self.position_if(task)

    def position_if(self, task: Task) -> int:
        """How many tasks would be before it, or are."""
        place = self._place(task)
        if task.alone:
            return int(self._lone.bisect_left(place))
        own = self._lines.get(task.owner)
        rank = int(own.places.bisect_left(place)) if own else 0
        tag = self._shares.tag(task.owner) + (rank * self._mean_cost(own) if own else 0.0)
        others = (
            self._served_before(tag, owner < task.owner, owner, line)
            for owner, line in self._lines.items()
            if owner != task.owner
        )
        return len(self._lone) + rank + sum(others)

    def oldest(self) -> float | None:
        """When the task that has waited longest was created."""
        lines = [self._lone, *(line.places for line in self._lines.values())]
        return min((task.created for places in lines for task in places.values()), default=None)

    def _must_wait(self, task: Task) -> None:
        line = self._lines.get(task.owner)
        if self._place(task) not in (self._lone if task.alone else line.places if line else ()):
            raise KeyError(task.id)

    def _place(self, task: Task) -> _Place:
        return (task.created - task.priority * self._priority_s, task.created, task.id)

    def _cost(self, task: Task) -> float:
        """Virtual seconds: an owner of weight 2 is charged half."""
        return task.remaining_steps * self._step_s(task.size) / task.weight

    def _mean_cost(self, line: _Line) -> float:
        seconds = sum(steps * self._step_s(size) for size, steps in line.steps.items())
        return seconds / len(line.places) / line.weight

    def _served_before(self, tag: float, first_at_a_tie: bool, owner: str, line: _Line) -> int:
        """How many tasks of an owner are served before another's task at this tag."""
        cost = self._mean_cost(line)
        ahead = tag - self._shares.tag(owner)
        if cost <= 0.0:
            return len(line.places) if ahead > 0 or (ahead == 0 and first_at_a_tie) else 0
        turns = ahead / cost
        if abs(turns - round(turns)) < 1e-9:
            turns = round(turns) + (0.5 if first_at_a_tie else 0.0)
        return min(max(math.ceil(turns), 0), len(line.places))


def _subtract(steps: Counter[Size], task: Task) -> None:
    steps[task.size] -= task.remaining_steps
    if steps[task.size] <= 0:
        del steps[task.size]
