"""Whoever follows the texts of a job, from whenever on, gets each of them once and completely."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.generation.text.followed_texts import FollowedTexts
from loadbalancer.generation.text.output_parser import OutputParser
from loadbalancer.generation.text.stored_text import StoredTexts, pack_text
from loadbalancer.schema.errors import TaskFailed
from loadbalancer.schema.text.text_requests import CHAT_PATH, COMPLETION_PATH, RESPONSE_PATH
from loadbalancer.storage.records import JobRecord, JobSpec, JobState, TextOptions
from wire.inputs import Sampling, TextInputs
from wire.text import Markers, TokenLogprob, TokenOutput, ToolCallFormat

ECHO: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "temperature": 1.0,
    "top_p": 1.0,
    "tools": [],
    "tool_choice": "auto",
    "text": {},
    "reasoning": {},
    "metadata": {},
}
TEXTS = (
    "plain words",
    "<think>why</think>so",
    '<call>{"name": "f", "arguments": {"a": 1}}</call>',
    'well <call>{"name": "f", "arguments": {}}</call> and <call>{"name": "g", "arguments": {"b": [2]}}</call>',
    "",
)


def record(path: str, texts: int = 1, logprobs: int | None = None) -> JobRecord:
    inputs = [TextInputs(Sampling(index), 99, logprobs=logprobs) for index in range(texts)]
    options = TextOptions(texts, tools=True, reasoning=True, echo=json.dumps(ECHO))
    spec = JobSpec(path, "m", list(inputs), 0, 1e12, "o", 1.0, text=options)
    return JobRecord(1, "job_ab12", spec, JobState.RUNNING, 5.0, 5.0, None, None)


def running(index: int, *, parsed: bool) -> TextChoice:
    choice = TextChoice(index)
    if parsed:
        form = ToolCallFormat("<call>", "</call>")
        choice.parser = OutputParser(Markers("<think>", "</think>"), form)
    return choice


def told(events: bytes, index: int = 0) -> dict[str, Any]:
    """What the events of a chat say of one choice."""
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "roles": 0, "finish": None, "logprobs": []}
    for line in events.decode().splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            found["roles"] += "role" in delta
            found["content"] += delta.get("content", "")
            found["reasoning"] += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    found["calls"].append([call["function"]["name"], ""])
                found["calls"][call["index"]][1] += call["function"].get("arguments", "")
            found["finish"] = choice["finish_reason"] or found["finish"]
            found["logprobs"] += (choice["logprobs"] or {"content": []})["content"]
    return found


@given(
    text=st.sampled_from(TEXTS),
    size=st.integers(1, 7),
    reads=st.sets(st.integers(0, 40)),
    parsed=st.booleans(),
    wants_logprobs=st.booleans(),
)
def test_reader_gets_the_text_once(text: str, size: int, reads: set[int], parsed: bool, wants_logprobs: bool) -> None:
    job = record(CHAT_PATH, logprobs=0 if wants_logprobs else None)
    followed, choice, events = FollowedTexts(job), running(0, parsed=parsed), b""
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    for number, part in enumerate(parts):
        logprobs = [TokenLogprob(part.encode(), -0.5)] if wants_logprobs else []
        choice.add(TokenOutput(number, [number], part, logprobs=logprobs, prompt_tokens=3 if not number else 0))
        if number in reads:
            events += followed.follow({0: choice})
    choice.add(TokenOutput(len(parts), [9], "", "stop", prompt_tokens=0 if parts else 3))
    stored = pack_text(choice)
    events += followed.finish(0, stored) + followed.end()
    whole = FollowedTexts(job)
    expected = told(whole.finish(0, stored) + whole.end())
    got = told(events)
    assert got == expected
    assert (got["roles"], len(got["logprobs"])) == (1, len(parts) * wants_logprobs)
    message = StoredTexts(job, [stored]).answer().choices[0].message  # type: ignore[attr-defined]
    assert (message.content or "") == got["content"]
    assert events.rstrip().endswith(b"[DONE]")
    assert followed.usage == whole.usage


@pytest.mark.parametrize("path", [CHAT_PATH, COMPLETION_PATH, RESPONSE_PATH])
def test_events_are_those_of_the_endpoint(path: str) -> None:
    followed, choice = FollowedTexts(record(path)), running(0, parsed=False)
    choice.add(TokenOutput(0, [1], "one ", prompt_tokens=4))
    first = followed.follow({0: choice})
    assert b"one " in first
    assert followed.follow({0: choice}) == b"", "nothing is new"
    choice.add(TokenOutput(1, [2], "two", "stop"))
    rest = followed.finish(0, pack_text(choice)) + followed.end()
    assert b'"two"' in rest
    assert b"ab12" in first
    assert followed.usage.total_tokens == 6


def test_texts_of_a_job_are_told_apart() -> None:
    followed, choices = FollowedTexts(record(CHAT_PATH, 2)), [running(index, parsed=False) for index in range(2)]
    choices[1].add(TokenOutput(0, [1], "b", "stop", prompt_tokens=4))
    events = followed.finish(1, pack_text(choices[1]))
    choices[0].add(TokenOutput(0, [1], "a", prompt_tokens=4))
    events += followed.follow({0: choices[0]})
    assert [told(events, index)["content"] for index in range(2)] == ["a", "b"]
    assert followed.usage.prompt_tokens == 4
    assert b"broken" in followed.failure(TaskFailed("broken"))
