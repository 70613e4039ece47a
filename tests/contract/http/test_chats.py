"""`POST /v1/chat/completions` by OpenAI's client, and what it refuses, on the simulated language model."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from scripts.harness.balancer import Server
from scripts.harness.processes import wait_until
from tests.support.texts import CHAT, chat_body, client, events, expected_text


@pytest.fixture
def api(shared: Server) -> openai.OpenAI:
    return client(shared.base_url)


def ask(api: openai.OpenAI, **options: Any) -> Any:
    return api.chat.completions.create(**chat_body(**options))


def test_chat_is_answered(api: openai.OpenAI) -> None:
    answer = ask(api, seed=3, max_tokens=8)
    [choice] = answer.choices
    assert choice.message.content == expected_text(3, 8)
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert (answer.object, answer.model) == ("chat.completion", "words")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1, 8, 9)
    assert usage.prompt_tokens_details.cached_tokens == usage.completion_tokens_details.reasoning_tokens == 0


def test_choices_have_seeds_of_their_own(api: openai.OpenAI) -> None:
    answer = ask(api, seed=3, max_completion_tokens=5, n=3)
    assert [choice.message.content for choice in answer.choices] == [expected_text(3 + i, 5) for i in range(3)]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 15)


def test_stop_text_ends_a_text(api: openai.OpenAI) -> None:
    words = expected_text(3, 20).split()
    answer = ask(api, seed=3, max_tokens=20, stop=[words[4], "never"])
    [choice] = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.message.content.split() == words[: words.index(words[4])]
    assert choice.stop_reason == words[4]


@pytest.mark.parametrize("n", [1, 3])
def test_stream_has_the_same_text(api: openai.OpenAI, n: int) -> None:
    texts, reasons = [""] * n, [""] * n
    chunks = list(ask(api, seed=5, max_tokens=30, n=n, stream=True, stream_options={"include_usage": True}))
    *others, last = chunks
    assert len({chunk.id for chunk in chunks}) == 1
    for chunk in others:
        [choice] = chunk.choices
        assert chunk.usage is None
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] += choice.finish_reason or ""
    assert texts == [expected_text(5 + i, 30) for i in range(n)]
    assert reasons == ["length"] * n
    assert (last.choices, last.usage.completion_tokens) == ([], 30 * n)


def test_stream_without_options_has_no_usage(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=chat_body(max_tokens=2, stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"]
    *chunks, done = events(answer)
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_continuous_usage(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = events(http.post(CHAT, json=chat_body(max_tokens=4, stream=True, stream_options=options)))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_stream_through_framework(http: httpx.Client) -> None:
    headers = {"idempotency-key": "stream-of-a-chat"}
    body = chat_body(max_tokens=9, stream=True)
    first, second = (http.post(CHAT, json=body, headers=headers) for _ in range(2))
    assert first.text == second.text
    assert second.headers["idempotent-replayed"] == "true"
    assert events(first)[-1] == "[DONE]"


@pytest.mark.parametrize("from_page", [False, True], ids=["direct", "through the framework"])
def test_client_that_leaves_frees_its_slot(http: httpx.Client, shared: Server, from_page: bool) -> None:
    headers = {"origin": shared.base_url} if from_page else {}
    with http.stream("POST", CHAT, json=chat_body(max_tokens=20_000, stream=True), headers=headers) as answer:
        parts = answer.iter_bytes()  # an iterator that nobody holds closes the connection
        next(parts)
        assert words_running(shared) == 1
    wait_until(lambda: not words_running(shared), "the task of a client that has left is cancelled")


def words_running(shared: Server) -> int:
    return sum(worker.running + worker.assigned for worker in shared.snapshot().workers if worker.model == "words")


def test_null_counts_as_absent(http: httpx.Client) -> None:
    nulls = dict.fromkeys(
        ("stop", "temperature", "n", "tools", "logprobs", "seed", "stream_options", "audio", "chat_template_kwargs")
    )
    assert http.post(CHAT, json=chat_body(max_tokens=1) | nulls).status_code == 200


def test_parameters_without_effect_are_accepted(http: httpx.Client) -> None:
    harmless = {
        "user": "u",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": False,
        "modalities": ["text"],
        "verbosity": "low",
        "ignore_eos": True,
        "min_tokens": 1,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert http.post(CHAT, json=chat_body(max_tokens=1) | harmless).status_code == 200


MESSAGE = {"role": "user", "content": "hello"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [MESSAGE] * 9}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type", "unsupported_value"),
        ({"messages": [MESSAGE | {"audio": {"id": "a"}}]}, "messages[0].audio", "unsupported_parameter"),
        ({"messages": [MESSAGE], "continue_final_message": True}, "messages", "invalid_value"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
        ({"store": True}, "store", "unsupported_value"),
        ({"n": 17}, "n", "invalid_value"),
        ({"max_tokens": 20_001}, "max_tokens", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty", "invalid_value"),
        ({"stop": ["a"] * 65}, "stop", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"12": 1}}, "logit_bias", "invalid_value"),
        ({"stop_token_ids": [12]}, "stop_token_ids", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": "all"}, "tool_choice", "invalid_value"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "invalid_value"),
        ({"tools": [TOOL] * 4}, "tools", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
            "response_format.json_schema.schema",
            "invalid_type",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": "x" * 300}}}},
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs", "invalid_value"),
        ({"model": "quick"}, "model", "unsupported_endpoint"),
        ({"model": "none"}, "model", "model_not_found"),
        ({"timeout_s": 1e9}, "timeout_s", "invalid_value"),
        ({"priority": 101}, "priority", "invalid_value"),
    ],
)
def test_refused_request_names_its_parameter(http: httpx.Client, change: dict[str, Any], param: str, code: str) -> None:
    answer = http.post(CHAT, json=chat_body() | change)
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error["message"]
    assert answer.status_code == (404 if code == "model_not_found" else 400)


def test_deep_schema_is_refused(http: httpx.Client) -> None:
    schema: Any = {}
    for _ in range(40):
        schema = {"a": schema}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    error = http.post(CHAT, json=chat_body(tools=[tool])).json()["error"]
    assert "levels deep" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_prompt_has_a_status(api: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is") as caught:
        ask(api, text="x" * 200_000, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_too_large_body_is_refused(http: httpx.Client) -> None:
    assert http.post(CHAT, json=chat_body("x" * (4 << 20))).status_code == 413
    error = http.post(CHAT, json=chat_body("x" * 1_100_000)).json()["error"]
    assert error["param"] == "messages"


def test_language_model_has_a_card(http: httpx.Client) -> None:
    card = http.get("/v1/models/words").json()
    assert card["task"] == "text"
    assert CHAT in card["endpoints"]
    assert card["limits"]["context_length"] == 32_768
    assert card["limits"]["max_messages"] == 8


def test_metrics_count_tokens(http: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]
        return found[0] if found else 0.0

    names = [f'muster_tokens_total{{kind="{kind}",model="words"}}' for kind in ("generated", "prompt")]
    names += ['muster_time_to_first_token_seconds_count{model="words"}']
    names += ['muster_time_per_output_token_seconds_count{model="words"}']
    before = [value(name) for name in names]
    assert http.post(CHAT, json=chat_body(max_tokens=7, n=2)).status_code == 200
    added = [value(name) - earlier for name, earlier in zip(names, before, strict=True)]
    assert (added[0], *added[2:]) == (14, 2, 2)
    assert added[1] >= 2
