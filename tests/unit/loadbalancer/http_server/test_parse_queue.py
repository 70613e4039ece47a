"""How many requests one turn of the event loop begins, and in which order they have their turn."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from loadbalancer.http_server.parse_queue import ParseQueue


async def turn_by_turn(queue: ParseQueue, waiting: list[tuple[str, bool]]) -> list[list[str]]:
    """Return what is parsed in each turn. An entry is a client and whether it asks for a health check."""
    parsed: list[str] = []
    for number, (client, is_health) in enumerate(waiting):
        queue.add(client, partial(parsed.append, f"{client}{number}"), is_health=is_health)
    turns = []
    while len(queue):
        await asyncio.sleep(0)
        turns.append(list(parsed))
        parsed.clear()
    return turns


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ([("a", False)] * 5, [["a0", "a1", "a2", "a3"], ["a4"]]),
        ([("a", False), ("a", False), ("b", False), ("a", False)], [["a0", "b2", "a1", "a3"]]),
        ([("a", False)] * 4 + [("b", True)], [["b4", "a0", "a1", "a2"], ["a3"]]),
        ([("a", True)] * 4 + [("b", False)], [["a0", "a1", "b4", "a2"], ["a3"]]),
        ([], []),
    ],
)
def test_order_and_size_of_turns(waiting: list[tuple[str, bool]], expected: list[list[str]]) -> None:
    assert asyncio.run(turn_by_turn(ParseQueue(per_turn=4), waiting)) == expected


def test_a_turn_has_room_for_a_few() -> None:
    async def begun() -> list[int]:
        queue, counts = ParseQueue(per_turn=4), []
        for _ in range(3):
            counts.append(sum(queue.try_begin() for _ in range(10)))
            await asyncio.sleep(0)
        return counts

    assert asyncio.run(begun()) == [4, 4, 4]


def test_costs_of_a_turn_end_with_it() -> None:
    """Also those of chunks, of which nothing waits in the queue."""

    async def begun() -> list[bool]:
        queue, could_begin = ParseQueue(per_turn=4), []
        for _ in range(3):
            queue.add_cost(4)
            could_begin.append(queue.try_begin())
            await asyncio.sleep(0)
            could_begin.append(queue.try_begin())
            await asyncio.sleep(0)
        return could_begin

    assert asyncio.run(begun()) == [False, True] * 3


def test_nobody_overtakes_those_that_wait() -> None:
    async def began() -> tuple[bool, bool]:
        queue = ParseQueue()
        queue.add("a", lambda: None, is_health=False)
        while_waiting = queue.try_begin()
        await asyncio.sleep(0)
        return while_waiting, queue.try_begin()

    assert asyncio.run(began()) == (False, True)


def test_a_failure_does_not_stop_the_queue() -> None:
    async def run() -> list[str]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        queue, parsed = ParseQueue(), []

        def fail() -> None:
            raise RuntimeError

        queue.add("a", fail, is_health=False)
        queue.add("a", lambda: parsed.append("after"), is_health=False)
        for _ in range(3):
            await asyncio.sleep(0)
        return parsed

    assert asyncio.run(run()) == ["after"]
