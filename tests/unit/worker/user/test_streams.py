"""Generators and async engines: chunks in order, a failing call that costs no other, work that stops when it may."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from muster import Failed
from scripts.harness.processes import PATIENCE_S
from tests.support.user_engines import CallOutcome, call, run_calls, user_engine


class Letters:
    """One item: yields its letters."""

    max_batch_size = 4

    def __init__(self) -> None:
        self.closed: list[str] = []

    def predict(self, item: str) -> Iterator[str]:
        try:
            for letter in item:
                if letter == "!":
                    raise RuntimeError("no exclamation")
                yield letter
        finally:
            self.closed.append(item)


class BatchOfLetters:
    """A batch: yields one letter per item, None where an item has ended."""

    max_batch_size = 4

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def predict(self, items: list[str]) -> Iterator[list[str | None]]:
        self.batches.append(items)
        if any(item.startswith("!") for item in items):
            raise RuntimeError("bad start")
        for index in range(max(map(len, items))):
            yield [self._letter(item, index) for item in items]

    def _letter(self, item: str, index: int) -> Any:
        if index >= len(item):
            return None
        return Failed("asked for") if item[index] == "?" else item[index]


class AsyncLetters:
    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.cancelled: list[str] = []

    async def predict(self, item: str) -> AsyncIterator[str]:
        for letter in item:
            await asyncio.sleep(0)
            if letter == "!":
                raise RuntimeError("no exclamation")
            yield letter


class Together:
    """Every call waits until the others are there, so that calls that run one by one would never end."""

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._there = 0
        self._complete = asyncio.Event()

    async def predict(self, item: int) -> int:
        self._there += 1
        if self._there == self._calls:
            self._complete.set()
        await self._complete.wait()
        if item < 0:
            raise ValueError("negative")
        return item * 2


class AsyncBatch:
    async def predict(self, items: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return [item * 2 for item in items]


class AsyncBatchStream:
    async def predict(self, items: list[str]) -> AsyncIterator[list[str]]:
        for index in range(2):
            await asyncio.sleep(0)
            yield [f"{item}{index}" for item in items]


@pytest.mark.parametrize("engine", [Letters, BatchOfLetters, AsyncLetters])
def test_chunks_come_in_order_or_joined(engine: Any) -> None:
    made = user_engine(engine)
    found = run_calls(made, [call("abc", stream=True), call("de", stream=True), call("fgh")])
    assert found == [CallOutcome(chunks=("a", "b", "c")), CallOutcome(chunks=("d", "e")), CallOutcome("fgh")]
    assert made.info().streams
    assert made.info().output_schema == '{"type": "string"}' or engine is BatchOfLetters


@pytest.mark.parametrize("engine", [Letters, AsyncLetters])
def test_failing_stream_costs_no_other(engine: Any) -> None:
    found = run_calls(user_engine(engine), [call("ab!", stream=True), call("cd", stream=True)])
    assert found == [
        CallOutcome(error="RuntimeError: no exclamation", chunks=("a", "b")),
        CallOutcome(chunks=("c", "d")),
    ]


def test_batch_that_fails_at_its_start_is_split() -> None:
    engine = BatchOfLetters()
    found = run_calls(user_engine(lambda: engine), [call("ab"), call("!"), call("cd")])
    assert found == [CallOutcome("ab"), CallOutcome(error="RuntimeError: bad start"), CallOutcome("cd")]
    assert engine.batches == [["ab", "!", "cd"], ["ab"], ["!"], ["cd"]]


def test_failed_item_of_a_batch_ends_alone() -> None:
    found = run_calls(user_engine(BatchOfLetters), [call("a?c", stream=True), call("def", stream=True)])
    assert found == [CallOutcome(error="asked for", chunks=("a",)), CallOutcome(chunks=("d", "e", "f"))]


def test_wrong_number_of_chunks_is_explained() -> None:
    class Short:
        def predict(self, items: list[str]) -> Iterator[list[str]]:
            yield ["only one"]

    [first, second] = run_calls(user_engine(Short), [call("a"), call("b")])
    assert first == second == CallOutcome(error="predict yielded a batch wrongly: it returned 1 results for 2 items")


def test_values_of_other_types_are_collected_as_list() -> None:
    class Numbers:
        def predict(self, item: int) -> Iterator[dict[str, int]]:
            yield from ({"n": n} for n in range(item))

    found = run_calls(user_engine(Numbers), [call(2), call(0), call(1, stream=True)])
    assert found == [CallOutcome([{"n": 0}, {"n": 1}]), CallOutcome([]), CallOutcome(chunks=({"n": 0},))]


def test_released_stream_is_closed() -> None:
    engine = Letters()
    made = user_engine(lambda: engine)
    [first, second] = made.admit([call("abc"), call("def")])
    made.step([first, second])  # type: ignore[list-item]
    made.release(first)  # type: ignore[arg-type]
    assert engine.closed == ["abc"]
    made.step([second])  # type: ignore[list-item]
    made.release(second)  # type: ignore[arg-type]
    assert engine.closed == ["abc", "def"]


def test_stream_of_a_batch_is_closed_with_its_last_row() -> None:
    closed = threading.Event()

    class Endless:
        def predict(self, items: list[str]) -> Iterator[list[str]]:
            try:
                while True:
                    yield items
            finally:
                closed.set()

    made = user_engine(Endless)
    [first, second] = made.admit([call("a"), call("b")])
    made.step([first, second])  # type: ignore[list-item]
    made.release(first)  # type: ignore[arg-type]
    made.step([second])  # type: ignore[list-item]
    assert not closed.is_set()
    made.release(second)  # type: ignore[arg-type]
    assert closed.is_set()


def test_async_calls_run_concurrently() -> None:
    made = user_engine(lambda: Together(3))
    found = run_calls(made, [call(1), call(-1), call(3)])
    assert found == [CallOutcome(2), CallOutcome(error="ValueError: negative"), CallOutcome(6)]
    assert made.limits().max_batch_size == 32
    made.close()


def test_released_async_call_is_cancelled() -> None:
    started, cancelled = threading.Event(), threading.Event()

    class Waiting:
        async def predict(self, item: str) -> str:
            started.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return item

    made = user_engine(Waiting)
    [row] = made.admit([call("a")])
    made.step([row])  # type: ignore[list-item]
    assert started.wait(PATIENCE_S)
    made.release(row)  # type: ignore[arg-type]
    assert cancelled.wait(PATIENCE_S)
    made.close()


def test_step_does_not_end_while_a_call_blocks_the_event_loop() -> None:
    is_blocked, may_go_on = threading.Event(), threading.Event()

    class Blocking:
        async def predict(self, item: str) -> str:
            is_blocked.set()
            may_go_on.wait(PATIENCE_S)
            return item

    def unblock() -> None:
        is_blocked.wait(PATIENCE_S)
        time.sleep(0.1)  # steps of a loop that is not blocked take 5 ms
        may_go_on.set()

    made = user_engine(Blocking)
    [row] = made.admit([call("a")])
    thread = threading.Thread(target=unblock)
    thread.start()
    while not is_blocked.is_set():
        made.step([row])  # type: ignore[list-item]
    made.step([row])  # type: ignore[list-item]
    assert may_go_on.is_set()
    thread.join()
    made.close()


@pytest.mark.parametrize("item", ["exit", "interrupt", "stop", "background"])
def test_async_call_that_stops_the_loop_costs_no_other(item: str) -> None:
    class Leaving:
        async def predict(self, item: str) -> str:
            if item == "exit":
                raise SystemExit(3)
            if item == "interrupt":
                raise KeyboardInterrupt
            if item == "stop":
                asyncio.get_running_loop().stop()
            if item == "background":
                asyncio.get_running_loop().call_soon(sys.exit)
            await asyncio.sleep(0.01)
            return item

    made = user_engine(Leaving)
    errors = {"exit": "SystemExit: 3", "interrupt": "KeyboardInterrupt"}
    found = run_calls(made, [call("a"), call(item), call("b")])
    assert [each.error for each in found] == ["", errors.get(item, ""), ""]
    assert run_calls(made, [call("c")]) == [CallOutcome("c")]
    made.close()


def test_async_batches() -> None:
    made = user_engine(AsyncBatch)
    assert run_calls(made, [call(1), call(2)]) == [CallOutcome(2), CallOutcome(4)]
    streams = user_engine(AsyncBatchStream)
    found = run_calls(streams, [call("a", stream=True), call("b")])
    assert found == [CallOutcome(chunks=("a0", "a1")), CallOutcome("b0b1")]
    for engine in (made, streams):
        engine.close()


@pytest.mark.parametrize("is_lazy", [True, False])
def test_batch_of_streams_that_fails_at_its_call_is_split(is_lazy: bool) -> None:
    class Popping:
        max_batch_size = 4

        def predict(self, items: list[dict[str, int]]) -> Iterator[list[int]]:
            return self.values(items) if is_lazy else iter([*self.values(items)])

        def values(self, items: list[dict[str, int]]) -> Iterator[list[int]]:
            yield [10 // item.pop("by") for item in items]

    found = run_calls(user_engine(Popping), [call({"by": 2}), call({"by": 0}), call({"by": 5})])
    assert [each.value for each in found] == [[5], None, [2]]
    assert found[1].error.startswith("ZeroDivisionError")
