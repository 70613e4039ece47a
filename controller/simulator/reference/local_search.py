"""Local search of the cheapest schedule of workers when all future requests are known.

It starts with enough workers for every request at once, and changes the number of workers in one interval at a time
while that lowers the GPU-seconds plus a cost of late requests. Only the stages are simulated again whose queue differs
from before, so that a day of requests takes a minute. It works for requests of any length. Equal input gives equal
results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from controller.simulator.reference.queue_sim import QueueSim, QueueState
from controller.simulator.reference.schedule_agent import WorkerSchedule
from controller.simulator.scenarios import Scenario

#: Lengths of a stage in seconds. The shortest is used with at most so many stages in all, and so many in the time
#: within which a request of mean work has to be served.
_STAGES_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_MAX_STAGES, _WINDOW_STAGES = 8640, 12
#: Passes over all intervals at one cost of late requests, at most.
_MAX_PASSES = 4
#: Simulations of the whole schedule at one cost of late requests, at most. A lasting backlog needs most of them.
_MAX_EFFORT = 150
#: A pass that lowers the score by less than this share is the last one.
_MIN_GAIN = 0.0005
#: Two queues whose tasks end within this many seconds of each other are equal.
_EQUAL_S = 1e-6
#: Lengths of intervals at the ends of a plateau, in stages.
_EDGE_LENGTHS = (1, 2, 4, 8)


class LocalSearch:
    """Search for the cheapest schedule of a single model. Each call of `cheapest` continues from the last schedule."""

    def __init__(self, scenario: Scenario) -> None:
        (name,) = scenario.traffic
        traffic, profile, target = scenario.traffic[name], scenario.profiles[name], scenario.targets()[name]
        self._queue = QueueSim(traffic.times, traffic.work, profile.slowdowns, target.scaling.slo.max_wait_s)
        self._start_s, self._leave_s = profile.expected_start_s(), profile.drain_s
        self._min_workers, self._max_workers = target.limits.min_workers, target.limits.max_workers
        self._initial_workers = target.initial_workers
        window_s = self._queue.max_wait_s + self._queue.sums[-1] / max(len(traffic.times), 1)
        shortest_s = max(scenario.span_s / _MAX_STAGES, window_s / _WINDOW_STAGES)
        self._stage_s = float(next((one for one in _STAGES_S if one >= shortest_s), _STAGES_S[-1]))
        self._stages = max(math.ceil(scenario.span_s / self._stage_s), 1)
        self._effort = 0
        self.start_from(self._workers_for_all(), self._stage_s)

    def start_from(self, workers: Sequence[int], stage_s: float) -> None:
        """Replace the schedule by another one with stages of `stage_s` seconds."""
        last = len(workers) - 1
        self._counts = [workers[min(int(n * self._stage_s / stage_s), last)] for n in range(self._stages)]
        #: The queue at the start of each stage, and the requests that become late in it.
        self._states = [QueueState(((),) * self._initial_workers)]
        self._late: list[int] = []
        for number, count in enumerate(self._counts):
            state, late = self._advance(self._states[-1], count, number)
            self._states.append(state)
            self._late.append(late)

    def start_with_all(self) -> None:
        """Replace the schedule by the largest number of workers as soon as they can be ready."""
        self.start_from([self._clip(self._max_workers, number) for number in range(self._stages)], self._stage_s)

    @property
    def schedule(self) -> WorkerSchedule:
        """The present schedule."""
        paid_s = self._cost_s(0, self._stages, self._counts)
        return WorkerSchedule(tuple(self._counts), paid_s, sum(self._late), self._stage_s)

    def cheapest(self, late_cost_s: float) -> WorkerSchedule:
        """Return the cheapest schedule found if a late request costs `late_cost_s` GPU-seconds."""
        self._effort = _MAX_EFFORT * self._stages
        for _ in range(_MAX_PASSES):
            before = self._score(late_cost_s)
            for start, end, change in self._intervals():
                if self._effort <= 0:
                    return self.schedule
                self._try(start, end, change, late_cost_s)
            if self._score(late_cost_s) > before * (1 - _MIN_GAIN):
                break
        return self.schedule

    def _score(self, late_cost_s: float) -> float:
        return self._cost_s(0, self._stages, self._counts) + late_cost_s * sum(self._late)

    # ---- schedules

    def _workers_for_all(self) -> list[int]:
        """Return the workers that serve every request when it arrives, within the limits."""
        changes = [0] * (self._stages + 1)
        batch, slowdown = len(self._queue.slowdowns), self._queue.slowdowns[-1]
        for at, work in zip(self._queue.times, self._queue.work, strict=False):
            changes[min(int(at / self._stage_s), self._stages)] += 1
            changes[min(int((at + work * slowdown) / self._stage_s) + 1, self._stages)] -= 1
        running, counts = 0, []
        for number in range(self._stages):
            running += changes[number]
            workers = min(max(-(-running // batch), self._min_workers), self._max_workers)
            counts.append(workers if self._may_grow(number) else min(workers, self._initial_workers))
        return counts

    def _may_grow(self, number: int) -> bool:
        return number * self._stage_s >= self._start_s

    def _advance(self, state: QueueState, workers: int, number: int) -> tuple[QueueState, int]:
        at = number * self._stage_s
        return self._queue.advance(self._queue.resize(state, workers), at, at + self._stage_s)

    def _cost_s(self, start: int, end: int, counts: Sequence[int]) -> float:
        """Return the cost of the stages, with the change to the stage after them."""
        previous = counts[start - 1] if start else self._initial_workers
        cost_s = 0.0
        for number in range(start, min(end + 1, self._stages)):
            workers = counts[number]
            change = workers - previous
            cost_s += change * self._start_s if change > 0 else -change * self._leave_s
            cost_s += workers * self._stage_s if number < end else 0.0
            previous = workers
        return cost_s

    # ---- changes

    def _intervals(self) -> Iterator[tuple[int, int, int]]:
        """Yield intervals of stages and the change of workers to try there: from long to short ones, then plateaus."""
        length = self._stages
        while length >= 1:
            for start in range(0, self._stages, max(length // 2, 1)):
                yield start, min(start + length, self._stages), -1
                yield start, min(start + length, self._stages), 1
            length //= 2
        for number in range(1, self._stages):
            if self._counts[number] > self._counts[number - 1]:
                yield from self._at_rise(number)
            elif self._counts[number] < self._counts[number - 1]:
                yield from self._at_fall(number)

    def _at_rise(self, number: int) -> Iterator[tuple[int, int, int]]:
        """Yield the whole plateau after a rise, a later rise and an earlier one."""
        end = number
        while end < self._stages and self._counts[end] >= self._counts[number]:
            end += 1
        yield number, end, -1
        for length in _EDGE_LENGTHS:
            yield number, min(number + length, self._stages), -1
            yield max(number - length, 0), number, 1

    def _at_fall(self, number: int) -> Iterator[tuple[int, int, int]]:
        """Yield the whole valley after a fall, a later fall and an earlier one."""
        end = number
        while end < self._stages and self._counts[end] <= self._counts[number]:
            end += 1
        yield number, end, 1
        for length in _EDGE_LENGTHS:
            yield number, min(number + length, self._stages), 1
            yield max(number - length, 0), number, -1

    def _try(self, start: int, end: int, change: int, late_cost_s: float) -> None:
        """Change the number of workers in the interval, and keep that if it lowers the score."""
        old = self._counts[start:end]
        new = [self._clip(workers + change, start + offset) for offset, workers in enumerate(old)]
        if new == old:
            return
        before_s = self._cost_s(start, end, self._counts)
        self._counts[start:end] = new
        saved_s = before_s - self._cost_s(start, end, self._counts)
        reach = end + math.ceil(4 * self._queue.max_wait_s / self._stage_s)
        hopeless = saved_s <= 0 and (change < 0 or late_cost_s * sum(self._late[start:reach]) + saved_s <= 0)
        found = None if hopeless else self._simulate(start, end, saved_s / late_cost_s)
        if found is None:
            self._counts[start:end] = old
            return
        states, late = found
        self._states[start + 1 : start + 1 + len(states)] = states
        self._late[start : start + len(late)] = late

    def _clip(self, workers: int, number: int) -> int:
        highest = self._max_workers if self._may_grow(number) else self._initial_workers
        return min(max(workers, self._min_workers), highest)

    def _simulate(self, start: int, end: int, max_more: float) -> tuple[list[QueueState], list[int]] | None:
        """Simulate from `start` until the queue is as before; None if `max_more` more requests or more are late."""
        state, states, late = self._states[start], [], []
        more, budget = 0, max(max_more, 0.0) + sum(self._late[end : end + 1])
        for number in range(start, self._stages):
            state, count = self._advance(state, self._counts[number], number)
            self._effort -= 1
            states.append(state)
            late.append(count)
            more += count - self._late[number]
            if more > budget and max_more > 0:
                return None
            if number >= end - 1 and _are_equal(state, self._states[number + 1]):
                break
        return (states, late) if more < max_more else None


def _are_equal(one: QueueState, other: QueueState) -> bool:
    """Return whether the queues go on in the same way."""
    if one.head != other.head or len(one.servers) != len(other.servers) or len(one.preempted) != len(other.preempted):
        return False
    pairs = zip(sorted(one.servers), sorted(other.servers), strict=True)
    return all(
        len(a) == len(b) and all(abs(x - y) < _EQUAL_S for x, y in zip(a, b, strict=True))
        for a, b in (*pairs, (one.preempted, other.preempted))
    )
