"""Bounds the requests that one turn of the event loop begins, whatever arrives at once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

#: Cost of the requests that begin in one turn, about 10 ms of work. A request that is answered at once costs 1.
PER_TURN = 128
#: Of a direct call whose answer is awaited, and of a request that an application answers in a task.
AWAITED_COST, TASK_COST = 2, 4
#: Chunks of a body that cost 1.
CHUNKS_PER_COST = 200
#: Of four requests in a row, so many may be health checks while others wait.
_HEALTH_OF_FOUR = 3

Parse = Callable[[], None]


class RoundRobinQueue:
    """Callbacks by client: the first of each client in turn."""

    def __init__(self) -> None:
        self._by_client: OrderedDict[str, deque[Parse]] = OrderedDict()
        self.size = 0

    def add(self, client: str, parse: Parse) -> None:
        self._by_client.setdefault(client, deque()).append(parse)
        self.size += 1

    def pop(self) -> Parse:
        """Raises `KeyError` if the queue is empty."""
        client, waiting = self._by_client.popitem(last=False)
        parse = waiting.popleft()
        if waiting:
            self._by_client[client] = waiting
        self.size -= 1
        return parse


class ParseQueue:
    """Connections whose next request waits to be parsed. All methods are called in the event loop.

    Health checks have a queue of their own, so that a crowd of other requests does not delay them.
    """

    def __init__(self, per_turn: int = PER_TURN) -> None:
        self._per_turn = per_turn
        #: Cost of what began in this turn.
        self._begun = 0
        self._is_scheduled = False
        self._health, self._others = RoundRobinQueue(), RoundRobinQueue()

    def __len__(self) -> int:
        return self._health.size + self._others.size

    def try_begin(self) -> bool:
        """Return whether a request may be parsed at once. If not, `add` must follow."""
        if self._begun >= self._per_turn or self._health.size or self._others.size:
            return False
        self._begun += 1
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._run_turn)
        return True

    def add_cost(self, cost: int) -> None:
        """Count a request that has begun in this turn, or its chunks, as more than one. The next turn counts anew."""
        self._begun += cost
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._run_turn)

    def add(self, client: str, parse: Parse, *, is_health: bool) -> None:
        """Call `parse` in one of the next turns."""
        (self._health if is_health else self._others).add(client, parse)
        self.add_cost(0)

    def _run_turn(self) -> None:
        self._is_scheduled = False
        self._begun = started = 0
        while self._begun < self._per_turn and (self._health.size or self._others.size):
            started += 1
            self._begun += 1
            health_first = started % 4 < _HEALTH_OF_FOUR
            first, second = (self._health, self._others) if health_first else (self._others, self._health)
            try:
                (first if first.size else second).pop()()
            finally:
                if not self._is_scheduled:
                    self.add_cost(0)  # even after an exception: the next turn counts anew
