"""Texts in flight: their responses, streams and ends, against the real tracker and scheduler."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from configs.settings import Settings
from loadbalancer.api.pushed_response import PushedResponse
from loadbalancer.api.text.completions import pushed
from loadbalancer.generation.in_flight import RequestTracker, ResponseMemory
from loadbalancer.generation.text.chat_writer import ChatWriter, chat_answer
from loadbalancer.generation.text.in_flight_text import AwaitedTexts, InFlightTexts
from loadbalancer.generation.text.response_writer import ResponseWriter
from loadbalancer.generation.text.streamed_texts import StreamedTexts
from loadbalancer.generation.text.text_spec import OutputFormat, TextSpec
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.scaling.control_plane import ControlPlane
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.task import TaskCompleted, TaskEnded, TaskTokens
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.errors import InvalidRequest, TaskFailed
from loadbalancer.schema.stream_events import KEEP_ALIVE
from loadbalancer.schema.text.chat_stream import ChatEvents
from loadbalancer.schema.text.response_answer import ResponseEcho
from scripts.harness.processes import PATIENCE_S
from tests.support.scheduler import notify
from wire.inputs import Sampling, TextInputs
from wire.messages import PROTOCOL, EngineInfo, Hello
from wire.text import FinishReason, Markers, TextInfo, TokenLogprob, TokenOutput, ToolCallFormat

INFO = TextInfo(chat=True, tool_calls=ToolCallFormat("<call>", "</call>"), reasoning=Markers("<think>", "</think>"))
TEXT = ["<think>", "why", "</think>", "so ", '<call>{"name": "f", ', '"arguments": {"a"', ": 1}}</call>"]
ECHO = ResponseEcho(None, None, 1.0, 1.0, [], "auto", {}, {}, {})


class Client:
    """Takes a stream; `unread` is what it has not read."""

    def __init__(self) -> None:
        self.received = b""
        self.parts = 0
        self.unread = 0
        self.is_finished = False

    def write(self, data: bytes) -> int:
        self.received += data
        self.parts += 1
        return self.unread

    def finish(self) -> None:
        self.is_finished = True

    @property
    def events(self) -> list[Any]:
        lines = [line[6:] for line in self.received.decode().splitlines() if line.startswith("data: {")]
        return [json.loads(line) for line in lines]


class Harness:
    """A tracker whose tasks no worker takes: the test makes their updates."""

    def __init__(self, folder: Path) -> None:
        models = {"m": {"engine": "sim", "sim": {"task": "text"}}}
        settings = Settings.model_validate({"models": models, "data_dir": str(folder)})
        self.scheduler = SchedulerService(settings, f"ipc://{folder}/workers.sock")
        self.memory = ResponseMemory(1 << 20, RefusalCounter())
        metrics = Metrics(self.scheduler.snapshot, self.scheduler.step_curves)
        self.tracker = RequestTracker(self.scheduler, metrics, ControlPlane(), self.memory)
        hello = Hello(PROTOCOL, "w", "m", "sim:0", 1, [], EngineInfo(text=INFO))
        self.scheduler._scheduler.registry.connect(hello, 0.0)

    def spec(self, n: int = 1, logprobs: int | None = None) -> TextSpec:
        inputs = [TextInputs(Sampling(i), 100, logprobs=logprobs) for i in range(n)]
        return TextSpec("m", inputs, [b"{}"] * n, 60.0, choices=n, output=OutputFormat(tools=True, reasoning=True))

    def stream(self, n: int = 1, *, logprobs: int | None = None, usage: bool = True) -> StreamedTexts:
        events = ChatEvents("chatcmpl-1", 1, "m", include_usage=usage, continuous_usage=False)
        writer = ChatWriter(events, "chatcmpl-1", wants_logprobs=logprobs is not None)
        return self.tracker.accept_texts(StreamedTexts, self.spec(n, logprobs), writer, lambda source: source)

    def send(self, texts: InFlightTexts, text: str, finish: FinishReason = "", choice: int = 0, **more: Any) -> None:
        index = texts.choices[choice].generated_tokens
        output = TokenOutput(index, [7], text, finish, prompt_tokens=0 if index else 5, **more)
        notify(self.scheduler, TaskTokens(texts.tasks[choice], output))
        if finish:
            notify(self.scheduler, TaskCompleted(texts.tasks[choice], [], 0.1, 0.2))

    def send_all(self, texts: InFlightTexts) -> None:
        for part in TEXT:
            self.send(texts, part)
        self.send(texts, "", "stop")

    @property
    def is_idle(self) -> bool:
        return not (self.memory.held or len(self.tracker) or self.scheduler.in_flight_counts["listeners"])


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


async def turn() -> None:
    """Let the loop flush what has come."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_answer_has_reasoning_and_calls(harness: Harness) -> None:
    texts = harness.tracker.accept_texts(AwaitedTexts, harness.spec(), lambda each: chat_answer(each, "chatcmpl-1", 1))
    harness.send_all(texts)
    answer = await texts.response
    [choice] = answer.choices
    message = choice.message
    assert (message.reasoning_content, message.reasoning, message.content) == ("why", "why", "so ")
    [call] = message.tool_calls
    assert (call.function.name, call.function.arguments) == ("f", '{"a": 1}')
    assert choice.finish_reason == "tool_calls"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 8)
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    texts.close()
    assert harness.is_idle


async def test_stop_text_in_a_call(harness: Harness) -> None:
    """`tool_calls` would say that the arguments can be read."""
    texts = harness.tracker.accept_texts(AwaitedTexts, harness.spec(), lambda each: chat_answer(each, "chatcmpl-1", 1))
    for part in TEXT[:-1]:
        harness.send(texts, part)
    harness.send(texts, "", "stop", stop_reason="1")
    [choice] = (await texts.response).choices
    assert choice.message.tool_calls[0].function.arguments == '{"a"'
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "1")
    texts.close()


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("parts", "finish", "status", "items"),
    [
        (TEXT, "stop", "completed", ["completed", "completed", "completed"]),
        (TEXT[:-1], "stop", "completed", ["completed", "completed", "incomplete"]),
        (TEXT[:-1], "length", "incomplete", ["completed", "completed", "incomplete"]),
        (TEXT[:4], "stop", "completed", ["completed", "completed"]),
        (TEXT[:4], "length", "incomplete", ["completed", "incomplete"]),
        ([], "length", "incomplete", []),
    ],
)
async def test_status_of_responses(
    harness: Harness, is_stream: bool, parts: list[str], finish: FinishReason, status: str, items: list[str]
) -> None:
    """A stop text completes a response, but no call whose arguments it cuts."""
    writer, client = ResponseWriter("00", 1, "m", ECHO), Client()
    texts: InFlightTexts
    if is_stream:
        texts = harness.tracker.accept_texts(StreamedTexts, harness.spec(), writer, lambda source: source)
        texts.attach(client)
    else:
        texts = harness.tracker.accept_texts(AwaitedTexts, harness.spec(), writer.answer)
    for part in parts:
        harness.send(texts, part)
    harness.send(texts, "", finish, stop_reason="1" if finish == "stop" else None)
    if is_stream:
        last = client.events[-1]
        assert last["type"] == f"response.{status}"
        answer = last["response"]
        done = [each["item"]["status"] for each in client.events if each["type"] == "response.output_item.done"]
        assert done == items
    else:
        answer = msgspec.to_builtins(await texts.response)
    assert (answer["status"], [item["status"] for item in answer["output"]]) == (status, items)
    assert answer["incomplete_details"] == ({"reason": "max_output_tokens"} if status == "incomplete" else None)
    texts.close()


async def test_failed_response_has_what_was_streamed(harness: Harness) -> None:
    writer, client = ResponseWriter("00", 1, "m", ECHO), Client()
    texts = harness.tracker.accept_texts(StreamedTexts, harness.spec(), writer, lambda source: source)
    texts.attach(client)
    for part in TEXT[:2]:
        harness.send(texts, part)
    await turn()
    texts.end(TaskFailed("The worker is gone.", code="timeout"))
    *_, done, last = client.events
    assert (done["type"], done["item"]["status"]) == ("response.output_item.done", "incomplete")
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "timeout")
    assert last["response"]["output"] == [done["item"]]
    deltas = [each["delta"] for each in client.events if each["type"].endswith(".delta")]
    assert done["item"]["content"][0]["text"] == "".join(deltas)
    texts.close()


async def test_stream_has_reasoning_and_calls(harness: Harness) -> None:
    texts, client = harness.stream(), Client()
    harness.send(texts, TEXT[0])
    assert not texts.response.done(), "nothing was flushed yet"
    await turn()
    assert (await texts.response) is texts
    texts.attach(client)
    for part in TEXT[1:]:
        harness.send(texts, part)
        await turn()
    harness.send(texts, "", "stop")
    deltas = [event["choices"][0]["delta"] for event in client.events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "why"
    assert "".join(delta.get("content", "") for delta in deltas) == "so "
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["function"] == {"name": "f", "arguments": ""}
    assert calls[0]["id"].startswith("call_")
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a": 1}'
    assert client.events[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert client.events[-1]["usage"]["completion_tokens"] == 8
    assert client.received.endswith(b"data: [DONE]\n\n")
    assert client.is_finished
    texts.close()
    assert harness.is_idle


async def test_response_has_an_item_for_each_part(harness: Harness) -> None:
    writer = ResponseWriter("00", 1, "m", ECHO)
    texts = harness.tracker.accept_texts(StreamedTexts, harness.spec(), writer, lambda source: source)
    client = Client()
    texts.attach(client)
    harness.send_all(texts)
    kinds = [event["type"] for event in client.events]
    assert [event["sequence_number"] for event in client.events] == list(range(len(kinds)))
    assert [kind for kind in kinds if "item" in kind] == ["response.output_item.added", "response.output_item.done"] * 3
    last = client.events[-1]
    assert last["type"] == "response.completed"
    reasoning, message, call = last["response"]["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "why"}]
    assert message["content"][0]["text"] == "so "
    assert (call["name"], call["arguments"], call["status"]) == ("f", '{"a": 1}', "completed")
    assert writer.answer(texts).output[2].id == call["id"]
    texts.close()


async def test_outputs_of_one_turn_leave_together(harness: Harness) -> None:
    texts, client = harness.stream(2), Client()
    texts.attach(client)
    for choice in (0, 1, 0, 1):
        harness.send(texts, "word ", choice=choice)
    await turn()
    assert client.parts == 1
    contents = [event["choices"][0]["delta"]["content"] for event in client.events]
    assert contents == ["", "word word "] * 2
    texts.close()
    assert harness.is_idle


async def test_stream_that_cannot_be_written_holds_no_other_up(harness: Harness) -> None:
    class BrokenClient(Client):
        def write(self, data: bytes) -> int:
            raise RuntimeError(f"{len(data)} bytes cannot be written")

    clients = [BrokenClient(), Client()]
    streams = [harness.stream() for _ in clients]
    for texts, client in zip(streams, clients, strict=True):
        texts.attach(client)
        harness.send(texts, "word ")
    await turn()
    assert [event["choices"][0]["delta"]["content"] for event in clients[1].events] == ["", "word "]
    for texts in streams:
        texts.close()
    assert harness.is_idle


async def test_logprobs_wait_for_their_text(harness: Harness) -> None:
    texts, client = harness.stream(logprobs=1), Client()
    texts.attach(client)
    half = "ä".encode()[:1]
    harness.send(texts, "", logprobs=[TokenLogprob(half, -0.5, [(half, -0.5)])])
    await turn()
    harness.send(texts, "ä", logprobs=[TokenLogprob(b"\xa4", -1.0)])
    await turn()
    found = [event["choices"][0]["logprobs"] for event in client.events]
    assert found[:-1] == [None] * (len(found) - 1)
    assert [each["bytes"] for each in found[-1]["content"]] == [[0xC3], [0xA4]]
    texts.close()


async def test_failure_before_the_first_text_has_a_status(harness: Harness) -> None:
    texts = harness.stream()
    notify(harness.scheduler, TaskEnded(texts.tasks[0], TaskState.FAILED, "invalid", "too long"))
    with pytest.raises(InvalidRequest, match="too long"):
        await texts.response
    await turn()
    assert harness.is_idle


async def test_too_long_prompt_is_named(harness: Harness) -> None:
    texts = harness.stream()
    notify(harness.scheduler, TaskEnded(texts.tasks[0], TaskState.FAILED, "context_length", "too long"))
    with pytest.raises(InvalidRequest, match="too long") as caught:
        await texts.response
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


async def test_failure_in_a_stream_is_its_last_event(harness: Harness) -> None:
    texts, client = harness.stream(2), Client()
    texts.attach(client)
    harness.send(texts, "a ")
    notify(harness.scheduler, TaskEnded(texts.tasks[1], TaskState.FAILED, "error", "broken"))
    assert "broken" in client.events[-1]["error"]["message"]
    assert client.events[-2]["choices"][0]["delta"]["content"] == "a ", "what had come is sent first"
    assert client.is_finished
    texts.close()
    assert harness.is_idle


async def test_unread_stream_is_bounded(harness: Harness) -> None:
    texts, client = harness.stream(), Client()
    texts.attach(client)
    client.unread = 1 << 20
    harness.send(texts, "a ")
    await turn()
    assert harness.memory.held == 1 << 20, "it counts for the key"
    client.unread = 17 << 20
    harness.send(texts, "b ")
    await turn()
    assert isinstance(texts.failure, TaskFailed)
    assert texts.failure.code == "stream_not_read"
    assert not harness.scheduler.in_flight_counts["tasks"], "its tasks are cancelled"
    texts.close()
    assert harness.is_idle


async def test_client_that_leaves_cancels_its_tasks(harness: Harness) -> None:
    texts = harness.stream(3)
    texts.response.cancel()
    await turn()
    assert harness.is_idle
    assert not harness.scheduler.in_flight_counts["tasks"]


async def test_further_attempt_does_not_count_its_prompt(harness: Harness) -> None:
    texts = harness.stream()
    harness.send(texts, "a ")
    moved = TokenOutput(1, [7], "b ", prompt_tokens=6, cached_tokens=6)
    notify(harness.scheduler, TaskTokens(texts.tasks[0], moved))
    assert (texts.usage.prompt_tokens, texts.usage.prompt_tokens_details.cached_tokens) == (5, 0)
    texts.close()


async def test_silent_stream_begins_and_stays_alive(harness: Harness) -> None:
    events = ChatEvents("chatcmpl-1", 1, "m", include_usage=False, continuous_usage=False)
    writer = ChatWriter(events, "chatcmpl-1", wants_logprobs=False)
    texts, client = StreamedTexts(harness.tracker, harness.spec(), writer, lambda source: source, 0.01), Client()
    assert (await texts.response) is texts, "without a text, after a while"
    texts.attach(client)
    async with asyncio.timeout(PATIENCE_S):
        while client.received.count(KEEP_ALIVE) < 3:
            await asyncio.sleep(0.01)
    notify(harness.scheduler, TaskEnded(texts.tasks[0], TaskState.FAILED, "invalid", "too long"))
    assert "too long" in client.events[-1]["error"]["message"], "it has no status any more"
    texts.close()
    await asyncio.sleep(0.03)
    assert client.received.endswith(b"[DONE]\n\n"), "nothing follows the end"


@pytest.mark.parametrize("leaves", [False, True], ids=["complete", "left"])
def test_stream_that_has_ended_is_no_garbage(harness: Harness, leaves: bool) -> None:
    """A full search for garbage is rare: a stream must not refer to itself. The server's loop is that of uvloop."""

    async def serve() -> weakref.ref[StreamedTexts]:
        events = ChatEvents("chatcmpl-1", 1, "m", include_usage=False, continuous_usage=False)
        writer = ChatWriter(events, "chatcmpl-1", wants_logprobs=False)
        texts = harness.tracker.accept_texts(StreamedTexts, harness.spec(), writer, pushed)
        harness.send(texts, "so ")
        await turn()
        response, client = await texts.response, Client()
        assert isinstance(response, PushedResponse)
        source = response.take_source()
        source.attach(client)
        if not leaves:
            harness.send(texts, "it is", "stop")
            await turn()
            assert client.is_finished
        source.close()
        return weakref.ref(texts)

    async def run() -> None:
        ended = await serve()
        await turn()
        assert ended() is None

    gc.collect()
    gc.disable()
    try:
        uvloop.run(run())
    finally:
        gc.enable()
