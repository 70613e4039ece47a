"""The waiting tasks of one model, in the order in which they are served.

Owners share the workers' time in proportion to their weights (`fair_share`), measured as work: remaining forward
passes times the cost of one. The tasks of one owner go by age, and one step of priority counts as `priority_s` seconds
of age. So only tasks that came at most `priority_s` seconds later per step of priority overtake another: none starves.

A task that comes back from a worker takes its old place, and its owner is refunded the remaining work. An isolated task
goes before all others, because it waits for an empty worker and not for a turn. The queue never inspects workers and
never refuses an accepted task; callers check `room` first.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from sortedcontainers import SortedDict, SortedList

from loadbalancer.scheduling.fair_share import FairShare
from loadbalancer.scheduling.owner_quota import owner_room
from loadbalancer.scheduling.task import Task
from wire.inputs import Shape

#: Age corrected by priority, creation time, id.
_SortKey = tuple[float, float, str]
#: A waiting task behind its key. Ids are unique, so that tasks are never compared.
_Entry = tuple[float, float, str, Task]
#: Outdated entries of a heap are removed when there are this many more of them than tasks.
_CLEAN_UP_ABOVE = 1024
#: Tags that differ by more virtual seconds are not equal.
_TIE_S = 1e-6


@dataclass(slots=True)
class OwnerQueue:
    """The waiting tasks of one owner."""

    tasks: SortedList[_Entry] = field(default_factory=SortedList)
    steps: dict[Shape, int] = field(default_factory=dict)
    weight: float = 1.0


class ModelQueue:
    """The waiting tasks of one model. Adding, taking and removing take logarithmic time.

    `step_s` gives the cost of a forward pass by shape, in seconds of one worker.
    """

    def __init__(
        self, max_tasks: int, *, priority_s: float = 60.0, step_s: Callable[[Shape], float] = lambda _: 1.0
    ) -> None:
        self.max_tasks = max_tasks
        #: Number of waiting tasks.
        self.count = 0
        #: Forward passes that the waiting tasks still need, by shape.
        self.steps: defaultdict[Shape, int] = defaultdict(int)
        self._priority_s = priority_s
        self._step_s = step_s
        self._shares = FairShare()
        self._owners: dict[str, OwnerQueue] = {}
        #: The waiting tasks by id.
        self._entries: dict[str, _Entry] = {}
        #: Creation time and id, as a heap. Entries of tasks that have left are skipped.
        self._ages: list[tuple[float, str]] = []
        #: The isolated tasks in their order.
        self.isolated: SortedDict[_SortKey, Task] = SortedDict()

    def __iter__(self) -> Iterator[Task]:
        """Yield the waiting tasks in the order in which they would be served if nothing else happened."""
        yield from self.isolated.values()
        costs = {owner: [(task, self._cost(task)) for *_, task in own.tasks] for owner, own in self._owners.items()}
        yield from self._shares.order(costs)

    def __repr__(self) -> str:
        return f"<ModelQueue {self.count} of {self.max_tasks} tasks, {sum(self.steps.values())} steps>"

    def room(self, owner: str) -> int:
        """Return how many more tasks of the owner may be accepted.

        A full queue still accepts tasks of an owner below its equal part, so that one owner's flood does not shut the
        others out. It never accepts more than twice `max_tasks` in total.
        """
        own, owners = self.owner_tasks(owner), self.active_owners(owner)
        return owner_room(self.max_tasks, used=self.count, own=own, owners=owners)

    def owner_tasks(self, owner: str) -> int:
        """Return the number of waiting tasks of an owner, isolated ones excluded."""
        own = self._owners.get(owner)
        return len(own.tasks) if own else 0

    def active_owners(self, owner: str) -> int:
        """Return the number of owners with waiting tasks, this one included."""
        return len(self._owners) + (owner not in self._owners)

    # ---- changes

    def push(self, task: Task) -> None:
        """Add a task at the place that its owner, priority and age give it."""
        shape, steps, created = task.shape, task.remaining_work, task.created
        entry = (created - task.priority * self._priority_s, created, task.id, task)
        self._entries[task.id] = entry
        if task.isolated:
            self.isolated[entry[:3]] = task
        else:
            own = self._owners.get(task.owner)
            if own is None:
                own = self._owners[task.owner] = OwnerQueue()
                self._shares.join(task.owner)
            own.tasks.add(entry)
            own.steps[shape] = own.steps.get(shape, 0) + steps
            own.weight = task.weight
        self.count += 1
        self.steps[shape] = self.steps.get(shape, 0) + steps
        heapq.heappush(self._ages, (task.created, task.id))
        if len(self._ages) > 2 * self.count + _CLEAN_UP_ABOVE:
            self._ages = [(created, name) for _, created, name, _ in self._entries.values()]
            heapq.heapify(self._ages)

    def requeue(self, task: Task) -> None:
        """Add a task that was taken before, and refund its owner the remaining work. Roll back the task first."""
        self.push(task)
        self.charge(task, -task.remaining_work)

    def remove(self, task: Task) -> None:
        """Remove a task without serving it. Raises `KeyError` if it is not in this queue."""
        self._remove(task, task.remaining_work)

    def take(self, task: Task) -> None:
        """Remove a task that goes to a worker, and charge its owner. Raises `KeyError` if it is not in this queue."""
        steps = task.remaining_work
        work_s = steps * self._step_s(task.shape)
        self._shares.charge(task.owner, work_s, task.weight, takes_turn=not task.isolated)
        self._remove(task, steps)

    def charge_turn(self, task: Task) -> None:
        """Charge the owner of a task that goes to a worker at once, because no other waits."""
        work_s = task.remaining_work * self._step_s(task.shape)
        self._shares.charge(task.owner, work_s, task.weight, takes_turn=True)

    def _remove(self, task: Task, steps: int) -> None:
        entry = self._entries.pop(task.id)
        if task.isolated:
            del self.isolated[entry[:3]]
        else:
            own = self._owners[task.owner]
            if len(own.tasks) == 1:
                del self._owners[task.owner]
                self._shares.leave(task.owner)
            else:
                if own.tasks[0] is entry:
                    own.tasks.pop(0)
                else:
                    own.tasks.remove(entry)
                _subtract(own.steps, task.shape, steps)
        self.count -= 1
        if self.count:
            _subtract(self.steps, task.shape, steps)
        else:
            self.steps.clear()
            self._ages.clear()

    def charge(self, task: Task, steps: int) -> None:
        """Charge the owner of a task that was taken for additional steps; negative steps are a refund."""
        if steps:
            self._shares.charge(task.owner, steps * self._step_s(task.shape), task.weight)

    def rescale(self, factor: float) -> None:
        """Multiply all charges: the first measurement has changed `step_s` by this factor for every shape."""
        self._shares.rescale(factor)

    # ---- questions

    def first(self) -> Task | None:
        """Return the task to serve next, isolated ones excluded."""
        owner = self._shares.first()
        return None if owner is None else self._owners[owner].tasks[0][3]

    def first_of_owner(self, owner: str, limit: int) -> list[Task]:
        """Return up to `limit` tasks of an owner in their order, isolated ones excluded."""
        own = self._owners.get(owner)
        return [task for *_, task in own.tasks.islice(stop=limit)] if own else []

    def owner_steps(self, owner: str) -> Mapping[Shape, int]:
        """Return the forward passes that the owner's waiting tasks still need, by shape."""
        own = self._owners.get(owner)
        return own.steps if own else {}

    def is_preempted_by(self, running: Task, waiting: Task) -> bool:
        """Return whether the running task, put back, would follow a waiting one of its owner that is served first."""
        owner, first = waiting.owner, self._shares.first()
        if first is None or running.owner != owner or self._key(waiting) > self._key(running):
            return False
        return owner == first or self._shares.tag(owner) - self._cost(running) < self._shares.tag(first)

    def position(self, task: Task) -> int:
        """Return the number of tasks before it: exact where each owner's tasks cost the same, else an estimate.

        Takes time in the number of owners. Raises `KeyError` if the task is not in this queue.
        """
        if task.id not in self._entries:
            raise KeyError(task.id)
        return self.expected_position(task)

    def expected_position(self, task: Task) -> int:
        """Return the number of tasks before it, or before a task like it that were queued now."""
        key = self._key(task)
        if task.isolated:
            return int(self.isolated.bisect_left(key))
        own = self._owners.get(task.owner)
        rank = int(own.tasks.bisect_left(key)) if own else 0
        tag = self._shares.tag(task.owner) + (rank * self._mean_cost(own) if own else 0.0)
        return len(self.isolated) + rank + self._served_before(tag, task.owner)

    def oldest(self) -> float | None:
        """Return the earliest creation time of the waiting tasks."""
        while self._ages and self._ages[0][1] not in self._entries:
            heapq.heappop(self._ages)
        return self._ages[0][0] if self._ages else None

    def _key(self, task: Task) -> _SortKey:
        return (task.created - task.priority * self._priority_s, task.created, task.id)

    def _cost(self, task: Task) -> float:
        """Return virtual seconds: an owner of weight 2 is charged half."""
        return task.remaining_work * self._step_s(task.shape) / task.weight

    def _mean_cost(self, own: OwnerQueue) -> float:
        seconds = sum(steps * self._step_s(shape) for shape, steps in own.steps.items())
        return seconds / len(own.tasks) / own.weight

    def _served_before(self, tag: float, owner: str) -> int:
        """Return how many tasks of other owners are served before a task of this one with this tag."""
        count, tag_of = 0, self._shares.tag
        for other, own in self._owners.items():
            ahead, wins_tie = tag - tag_of(other), other < owner
            if ahead < -_TIE_S or other == owner or (ahead == 0 and not wins_tie):
                continue
            if len(own.tasks) == 1 and (ahead > _TIE_S or ahead == 0):  # of many owners most have one task
                count += 1
            else:
                count += self._turns(ahead, own, wins_tie=wins_tie)
        return count

    def _turns(self, ahead: float, own: OwnerQueue, *, wins_tie: bool) -> int:
        """Return how many tasks an owner has served before another one whose tag is `ahead` of its own."""
        cost = self._mean_cost(own)
        if cost <= 0.0:
            return len(own.tasks) if ahead > 0 or (ahead == 0 and wins_tie) else 0
        turns = ahead / cost
        if abs(turns - round(turns)) < 1e-9:
            turns = round(turns) + (0.5 if wins_tie else 0.0)
        return min(max(math.ceil(turns), 0), len(own.tasks))


def _subtract(steps: dict[Shape, int], shape: Shape, count: int) -> None:
    """Remove what a task needs, and its shape with the last task of it."""
    left = steps.get(shape, 0) - count
    if left > 0:
        steps[shape] = left
    else:
        steps.pop(shape, None)
