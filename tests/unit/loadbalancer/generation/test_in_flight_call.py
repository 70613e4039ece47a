"""A request for calls in flight: its response, its end and what it holds, against the real tracker and scheduler."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from configs.settings import Settings
from loadbalancer.generation.call_spec import CallSpec
from loadbalancer.generation.in_flight import RequestTracker, ResponseMemory
from loadbalancer.generation.in_flight_call import AwaitedCalls, InFlightCalls, StreamedCalls
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.scaling.control_plane import ControlPlane
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.task import TaskChunk, TaskCompleted, TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.errors import ApiError, InvalidRequest, TimedOut
from tests.support.scheduler import notify
from wire.inputs import CallInputs, Part

MODELS = {"echo": {"engine": "sim", "sim": {"task": "call"}}}
ITEMS = [b"1", b"[2]", b"3"]


def spec(items: list[bytes], *, stream: bool) -> CallSpec:
    inputs = [CallInputs((Part(),), stream)] * len(items)
    return CallSpec("echo", inputs, [[item] for item in items], 60.0, param="instances")


class Harness:
    """A tracker whose tasks no worker takes: the test makes their updates."""

    def __init__(self, folder: Path) -> None:
        settings = Settings.model_validate({"models": MODELS, "data_dir": str(folder)})
        self.scheduler = SchedulerService(settings, f"ipc://{folder}/workers.sock")
        self.memory = ResponseMemory(1 << 20, RefusalCounter())
        metrics = Metrics(self.scheduler.snapshot, self.scheduler.step_curves)
        self.tracker = RequestTracker(self.scheduler, metrics, ControlPlane(), self.memory)

    def accept(self, respond: Any, items: list[bytes] = ITEMS) -> AwaitedCalls:
        return self.tracker.accept(AwaitedCalls, spec(items, stream=False), respond)

    def stream(self) -> StreamedCalls:
        return self.tracker.accept(StreamedCalls, spec([b"1"], stream=True))

    def complete(self, call: InFlightCalls, index: int, frame: bytes) -> None:
        notify(self.scheduler, TaskCompleted(call.tasks[index], [frame], 0.1, 0.2, parts=(Part(),)))

    @property
    def is_idle(self) -> bool:
        return not (self.memory.held or len(self.tracker) or self.scheduler.in_flight_counts["listeners"])


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def joined(call: AwaitedCalls) -> bytes:
    if call.failure is not None:
        raise call.failure
    return b",".join(bytes(result.frames[0]) for result in call.results)


async def test_response_is_made_by_the_last_result(harness: Harness) -> None:
    call = harness.accept(joined)
    for index in (2, 0, 1):
        assert not call.response.done()
        harness.complete(call, index, ITEMS[index])
    assert await call.response == b"1,[2],3"
    assert harness.memory.held == call.held_bytes == 5
    call.close()
    call.close()
    assert harness.memory.held == 0
    assert len(harness.tracker) == 0


@pytest.mark.parametrize(
    ("state", "kind", "error", "text", "param"),
    [
        (TaskState.FAILED, "invalid", InvalidRequest, "instances[1]: it is bad", "instances[1]"),
        (TaskState.EXPIRED, None, TimedOut, "The request timed out: it is bad.", None),
    ],
)
async def test_failed_call_cancels_the_others(
    harness: Harness, state: TaskState, kind: Any, error: type[ApiError], text: str, param: str | None
) -> None:
    call = harness.accept(joined)
    harness.complete(call, 0, b"1")
    notify(harness.scheduler, TaskEnded(call.tasks[1], state, kind, "it is bad"))
    with pytest.raises(error) as failed:
        await call.response
    await asyncio.sleep(0)
    assert (failed.value.message, failed.value.param) == (text, param)
    assert harness.is_idle


async def test_cancelled_response_cancels_the_calls(harness: Harness) -> None:
    call = harness.accept(joined)
    call.response.cancel()
    await asyncio.sleep(0)
    assert harness.is_idle


@pytest.mark.parametrize("rounds", range(6))
async def test_cancellation_beside_the_last_result_closes_the_calls(harness: Harness, rounds: int) -> None:
    """The response may be there, while the task that awaits it has not gone on."""
    call = harness.accept(joined, [b"1"])

    async def answer() -> bytes:
        response: bytes = await call
        call.close()  # as the one who sends the response does
        return response

    waiting = asyncio.create_task(answer())
    await asyncio.sleep(0)
    harness.complete(call, 0, b"1")
    for _ in range(rounds):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert harness.is_idle


async def test_response_that_cannot_be_made_ends_the_calls(harness: Harness) -> None:
    def broken(_: AwaitedCalls) -> bytes:
        raise RuntimeError("a bug")

    call = harness.accept(broken, [b"1"])
    harness.complete(call, 0, b"1")
    with pytest.raises(RuntimeError, match="a bug"):
        await call
    assert harness.is_idle


async def test_responses_are_made_after_the_turn_that_ended_them(harness: Harness) -> None:
    delivered: list[tuple[bytes | None, BaseException | None]] = []
    calls = [harness.accept(joined, [item]) for item in ITEMS]
    for call, item in zip(calls, ITEMS, strict=True):
        call.deliver_to(lambda *answer: delivered.append(answer))
        harness.complete(call, 0, item)
    calls[1].cancel()
    assert delivered == []
    await asyncio.sleep(0)
    assert delivered == [(b"1", None), (b"3", None)]
    for call in calls:
        call.close()
    assert harness.is_idle


async def test_response_may_be_made_later(harness: Harness) -> None:
    later: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    call = harness.accept(lambda _: later, [b"1"])
    harness.complete(call, 0, b"1")
    assert not call.response.done()
    later.set_result(b"made")
    assert await call.response == b"made"


async def test_stream_releases_what_it_has_sent(harness: Harness) -> None:
    call = harness.stream()
    chunk = TaskChunk(call.tasks[0], 0, Part(), b"piece")
    notify(harness.scheduler, chunk)
    assert call.events.popleft() is chunk
    assert harness.memory.held == 5
    call.release(5)
    harness.complete(call, 0, b"")
    assert call.ended.done()
    assert call.changed.is_set()
    assert harness.memory.held == 0
    call.close()
    assert harness.is_idle


async def test_stream_that_nobody_reads_ends(harness: Harness) -> None:
    call = harness.stream()
    for index in range(3):
        notify(harness.scheduler, TaskChunk(call.tasks[0], index, Part(), bytes(32 << 20)))
    assert call.failure is not None
    assert call.failure.code == "stream_not_read"
    assert not harness.scheduler.in_flight_counts["listeners"], "the call is cancelled"
    call.close()
    assert harness.is_idle


async def test_end_of_the_server_ends_the_request(harness: Harness) -> None:
    call = harness.accept(joined)
    harness.tracker.close()
    call.end(InvalidRequest("The end."))
    call.end()
    with pytest.raises(InvalidRequest):
        await call.response
