"""`POST /v1/completions` by OpenAI's client, and what it refuses, on the simulated language model."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from scripts.harness.balancer import Server
from tests.support.texts import CHAT, COMPLETE, client, events, expected_text


@pytest.fixture
def api(shared: Server) -> openai.OpenAI:
    return client(shared.base_url)


@pytest.mark.parametrize(
    ("prompt", "count"), [("a text", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2), ("", 1)]
)
def test_each_prompt_has_its_texts(api: openai.OpenAI, prompt: Any, count: int) -> None:
    answer = api.completions.create(model="words", prompt=prompt, seed=4, max_tokens=6, n=2)
    assert [choice.text for choice in answer.choices] == [expected_text(4, 6), expected_text(5, 6)] * count
    assert [choice.index for choice in answer.choices] == list(range(2 * count))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12 * count
    assert answer.usage.prompt_tokens >= count


def test_default_length_is_that_of_openai(api: openai.OpenAI) -> None:
    answer = api.completions.create(model="words", prompt="a", seed=1)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected_text(1, 16), "length")


def test_stream_has_the_same_texts(api: openai.OpenAI) -> None:
    texts = ["", ""]
    stream = api.completions.create(
        model="words", prompt=["a", "b"], seed=2, max_tokens=9, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [expected_text(2, 9)] * 2
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 18


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[1], []]}, "prompt[1]", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_type"),
        ({"prompt": [1, 12]}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 6}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt[0]", "invalid_value"),
        ({"echo": True}, "echo", "unsupported_value"),
        ({"suffix": "x"}, "suffix", "unsupported_value"),
        ({"best_of": 2}, "best_of", "unsupported_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)
def test_refused_request_names_its_parameter(http: httpx.Client, change: dict[str, Any], param: str, code: str) -> None:
    error = http.post(COMPLETE, json={"model": "words", "prompt": "a"} | change).json()["error"]
    assert (error["param"], error["code"]) == (param, code), error["message"]


MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETE, {"prompt": "a", "repetition_penalty": 1.0, "max_tokens": 3, "logprobs": None} | STREAM),
        (CHAT, {"messages": MESSAGES, "max_completion_tokens": 3, "ignore_eos": True} | STREAM),
        (CHAT, {"messages": MESSAGES, "max_completion_tokens": 3, "min_tokens": 3} | STREAM),
        (
            CHAT,
            {"messages": MESSAGES, "max_tokens": 3, "stop": None, "ignore_eos": True}
            | {"stream": True, "stream_options": CONTINUOUS},
        ),
        (COMPLETE, {"prompt": [1, 2], "max_tokens": 3, "temperature": 0, "ignore_eos": True} | STREAM),
    ],
    ids=["vllm bench", "vllm bench chat", "aiperf", "guidellm", "sglang"],
)
def test_requests_of_benchmark_clients(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    answer = http.post(path, json=body | {"model": "words"}, headers={"x-request-id": "bench-1"})
    *_, last, done = events(answer)
    assert (last["usage"]["completion_tokens"], last["choices"], done) == (3, [], "[DONE]")


def test_defaults_of_clients_are_accepted(http: httpx.Client) -> None:
    body = {"prompt": "a", "best_of": 2, "n": 2, "echo": False, "suffix": None, "logprobs": None, "max_tokens": 1}
    assert http.post(COMPLETE, json=body | {"model": "words", "repetition_penalty": 1.0}).status_code == 200
