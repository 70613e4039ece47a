"""A user's engine in the worker's step loop: what the balancer receives for every kind of engine."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, ClassVar

import pytest

from configs.model_settings import Model
from muster import Failed
from scripts.harness.processes import wait_until
from tests.support.user_engines import parsed
from wire.codec import BalancerEnvelope, WorkerEnvelope
from wire.inputs import CallInputs, Part
from wire.messages import PROTOCOL, Assign, Assignment, Cancel, Chunk, Finished, Hello, Preempt, Preempted, ToWorker
from wire.messages import Failed as FailedTask
from worker.batch_size import BatchSizer
from worker.engines.user.engine import UserEngine
from worker.postprocessing import PostProcessor
from worker.startup import with_engine_limits
from worker.step_loop import StepLoop
from worker.transport import DrainRequested


class Doubling:
    """The reference: every other engine gives the same results."""

    def predict(self, items: list[int]) -> list[int]:
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [2 * item for item in items]


class SingleDoubling:
    def predict(self, item: int) -> int:
        [result] = Doubling().predict([item])
        return result


class AsyncDoubling:
    async def predict(self, item: int) -> int:
        await asyncio.sleep(0)
        [result] = Doubling().predict([item])
        return result


class IterativeDoubling:
    """Adds the item in two steps."""

    def start(self, item: int) -> list[int]:
        return [item, 0, 0]

    def step(self, states: list[list[int]]) -> list[bool]:
        if any(item < 0 for item, _, _ in states):
            raise ValueError("negative")
        for state in states:
            state[1] += state[0]
            state[2] += 1
        return [state[2] == 2 for state in states]

    def result(self, state: list[int]) -> int:
        return state[1]

    def save(self, state: list[int]) -> dict[str, Any]:
        return {"state": state}

    def restore(self, item: int, saved: dict[str, Any]) -> list[int]:
        state: list[int] = saved["state"]
        return state


class StreamedDoubling:
    def predict(self, items: list[int]) -> Iterator[list[Any]]:
        yield [Failed("ValueError: negative") if item < 0 else 2 * item for item in items]


class AsyncStreamedDoubling:
    async def predict(self, item: int) -> AsyncIterator[int]:
        [result] = Doubling().predict([item])
        yield result


class LitServeDoubling:
    max_batch_size = 4

    def setup(self, device: str) -> None:
        self.device = device

    def decode_request(self, request: int) -> int:
        return request

    def predict(self, x: list[int]) -> list[int]:
        return Doubling().predict(x)

    def encode_response(self, output: int) -> int:
        return output


ENGINES = [
    Doubling,
    SingleDoubling,
    AsyncDoubling,
    IterativeDoubling,
    StreamedDoubling,
    AsyncStreamedDoubling,
    LitServeDoubling,
]
STREAMS = [StreamedDoubling, AsyncStreamedDoubling]


class ScriptedBalancer:
    """Delivers one entry of the script per turn of the loop, then lets it finish what it has."""

    def __init__(self, script: Sequence[tuple[ToWorker, Sequence[bytes]] | None]) -> None:
        self._script = list(script)
        self.sent: list[WorkerEnvelope] = []

    def send(self, *envelopes: WorkerEnvelope) -> None:
        self.sent += envelopes

    def receive(self, timeout_s: float) -> list[BalancerEnvelope | DrainRequested]:
        del timeout_s
        if self._script:
            entry = self._script.pop(0)
            return [] if entry is None else [BalancerEnvelope(*entry)]
        return [DrainRequested("the script is over")]

    def outcomes(self) -> dict[str, Any]:
        """The result or error of each task; a list of chunks and the result for a stream."""
        found: dict[str, Any] = {}
        for message, frames in self.sent:
            if isinstance(message, Chunk):
                assert message.index == len(found.setdefault(message.task, []))
                found[message.task].append(parsed(message.part, bytes(frames[0])))
            elif isinstance(message, Finished):
                values = [parsed(part, bytes(frame)) for part, frame in zip(message.parts, frames, strict=True)]
                found[message.task] = found[message.task] + values if message.task in found else values[0]
            elif isinstance(message, FailedTask):
                found[message.task] = message.message
        return found


def assign(*items: Any, stream: bool = False) -> tuple[ToWorker, Sequence[bytes]]:
    inputs = CallInputs((Part(),), stream)
    tasks = [Assignment(str(index), 1, inputs, frames=1) for index in range(len(items))]
    return Assign(tasks), [json.dumps(item).encode() for item in items]


def serve(
    engine: Any, *script: tuple[ToWorker, Sequence[bytes]] | None, max_result_bytes: int = 1 << 20
) -> ScriptedBalancer:
    balancer = ScriptedBalancer(script)
    post = PostProcessor(balancer.send, 1, max_result_bytes)
    made = UserEngine(Model(engine="tests:Engine"), "cpu:0", engine)
    made.load()
    model = with_engine_limits(Model(engine="tests:Engine"), made)
    sizer = BatchSizer(8, fixed=True, min_gain=0.0, max_step_s=None)
    loop = StepLoop(made, model, Hello(PROTOCOL, "w", "m", "cpu:0", 1), sizer, balancer, post, drain_timeout_s=60.0)
    try:
        assert loop.run() == "the script is over"
    finally:
        post.shutdown()
        made.close()
    return balancer


#: Turns of the loop in which everything ends.
TURNS = [None] * 40


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_isolates_the_item_that_fails(engine: Any) -> None:
    found = serve(engine, assign(1, -1, "x", 3), *TURNS).outcomes()
    assert (found["0"], found["3"]) == ([2], [6]) if engine in STREAMS else (2, 6)
    assert found["1"].endswith("ValueError: negative")
    assert found["2"].startswith("Input should be a valid integer") or engine is LitServeDoubling


@pytest.mark.parametrize("engine", STREAMS)
def test_chunks_are_numbered_and_before_the_end(engine: Any) -> None:
    balancer = serve(engine, assign(1, 2, stream=True), *TURNS)
    assert balancer.outcomes() == {"0": [2], "1": [4]}
    kinds = [type(message) for message, _ in balancer.sent if isinstance(message, Chunk | Finished)]
    assert kinds in ([Chunk, Chunk, Finished, Finished], [Chunk, Finished, Chunk, Finished])
    assert all(message.parts == () for message, _ in balancer.sent if isinstance(message, Finished))


def test_large_chunk_fails_its_call_only() -> None:
    class Words:
        def predict(self, items: list[int]) -> Iterator[list[str]]:
            yield ["x" * item for item in items]

    found = serve(Words, assign(2000, 3, stream=True), *TURNS, max_result_bytes=1000).outcomes()
    assert found == {
        "0": "a piece of the result is too large: it has 2002 bytes (workers.max_result_bytes)",
        "1": ["xxx"],
    }


class Endless:
    """Yields a text as often as its item says, and without end for a negative one."""

    closed: ClassVar[list[int]] = []

    def predict(self, item: int) -> Iterator[str]:
        try:
            for _ in itertools.count() if item < 0 else range(item):
                yield "x" * 50
        finally:
            self.closed.append(item)


class AsyncEndless:
    """The same, which never gives its event loop a turn."""

    closed: ClassVar[list[int]] = []

    async def predict(self, item: int) -> AsyncIterator[str]:
        try:
            for _ in itertools.count() if item < 0 else range(item):
                yield "x" * 50
        finally:
            self.closed.append(item)


@pytest.mark.parametrize("engine", [Endless, AsyncEndless])
def test_values_of_an_endless_generator_are_not_collected_for_ever(engine: Any) -> None:
    found = serve(engine, assign(-1, 3, 100_000), *TURNS, max_result_bytes=1000).outcomes()
    assert found["1"] == "x" * 150
    for task in ("0", "2"):
        assert re.fullmatch(r"the result is too large: its values have about \d+ bytes until now; .*", found[task])
    wait_until(lambda: {-1, 100_000} <= set(engine.closed), "the generators are closed")


def test_a_result_of_the_largest_size_is_sent() -> None:
    """As JSON it has two more bytes."""
    assert serve(Endless, assign(20), *TURNS, max_result_bytes=1002).outcomes() == {"0": "x" * 1000}


class Cyclic:
    """Yields a text, or a list that contains itself for a negative item."""

    def predict(self, item: int) -> Iterator[Any]:
        cyclic: list[Any] = []
        cyclic.append(cyclic)
        yield "fine" if item >= 0 else cyclic


class AsyncCyclic:
    async def predict(self, item: int) -> AsyncIterator[Any]:
        for value in Cyclic().predict(item):
            yield value


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("engine", [Cyclic, AsyncCyclic])
def test_value_that_contains_itself_fails_its_call_only(engine: Any, stream: bool) -> None:
    found = serve(engine, assign(-1, 3, stream=stream), *TURNS).outcomes()
    assert found["0"].startswith("the result cannot be sent: ")
    assert found["1"] == (["fine"] if stream else "fine")


@pytest.mark.parametrize("stream", [False, True])
def test_stream_that_is_out_of_memory_repeats_no_value(stream: bool) -> None:
    failures = ["for the third value of the first call"]

    class Letters:
        def predict(self, item: int) -> Iterator[str]:
            yield f"a{item}"
            yield f"b{item}"
            if item == 0 and failures:
                raise MemoryError(failures.pop())
            yield f"c{item}"

    found = serve(Letters, assign(0, 1, 2, stream=stream), *TURNS).outcomes()
    if stream:
        assert found.pop("0").endswith("for the third value of the first call"), "its values have been sent"
        assert found == {str(item): [f"{letter}{item}" for letter in "abc"] for item in (1, 2)}
    else:
        assert found == {"0": "a0b0c0", "1": "a1b1c1"}, "the last one is given back to the balancer"


def test_preempted_work_continues_elsewhere() -> None:
    first = serve(IterativeDoubling, assign(4), (Preempt(["0"]), []), *TURNS)
    [(preempted, frames)] = [(each, frames) for each, frames in first.sent if isinstance(each, Preempted)]
    assert (preempted.step, preempted.frames) == (1, 1)
    task = Assignment("0", 2, CallInputs((Part(),)), step=1, frames=2)
    second = serve(IterativeDoubling, (Assign([task]), [b"4", *map(bytes, frames)]), *TURNS)
    assert second.outcomes() == {"0": 8}


@pytest.mark.parametrize("engine", ENGINES)
def test_cancelled_call_leaves_the_others(engine: Any) -> None:
    found = serve(engine, assign(1, 2), (Cancel(["0"]), []), *TURNS).outcomes()
    assert found["1"] == ([4] if engine in STREAMS else 4)
