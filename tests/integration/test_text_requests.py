"""What strangers send to `engine: text` on the built-in model: each mistake is a 400 that names its parameter."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.harness.balancer import running
from scripts.harness.processes import PATIENCE_S, wait_until
from tests.support.texts import CHAT, COMPLETE, RESPOND

_MESSAGES = [{"role": "user", "content": "What is 3 plus 4?"}]
_BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": _MESSAGES, "temperature": 0, "max_tokens": 40},
    COMPLETE: {"prompt": "What is", "temperature": 0, "max_tokens": 20},
    RESPOND: {"input": "What is 3 plus 4?", "temperature": 0},
}
_SCHEMA = "response_format.json_schema.schema"
_OPTIONAL = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(512)}}


_MODELS = {
    "tiny": {
        "engine": "text",
        "path": "builtin:tiny-text",
        "text": {"kv_cache": "32MiB"},
        "warm_up": {"measure_s": 0},
    }
}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        running(tmp_path_factory.mktemp("requests"), _MODELS, 1) as server,
        httpx.Client(base_url=server.base_url, timeout=PATIENCE_S) as client,
    ):
        yield client


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "add"} | function}]}


@pytest.mark.parametrize(
    ("path", "options", "param", "code"),
    [
        (CHAT, schema({"type": "nope"}), _SCHEMA, "invalid_value"),
        (CHAT, schema({"$ref": "#/nope"}), _SCHEMA, "invalid_value"),
        (CHAT, schema({"type": "string", "pattern": "("}), _SCHEMA, "invalid_value"),
        (CHAT, schema({"enum": []}), _SCHEMA, "invalid_value"),
        (CHAT, schema({"description": "x" * 70_000}), _SCHEMA, "invalid_value"),
        (COMPLETE, schema({"type": 7}), _SCHEMA, "invalid_value"),
        (
            RESPOND,
            {"text": {"format": {"type": "json_schema", "name": "x"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        (
            RESPOND,
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nope"}}}},
            "text.format.schema",
            "invalid_value",
        ),
        (CHAT, tool(parameters={"type": "object", "properties": {"a": {"type": "nope"}}}), "tools", "invalid_value"),
        (CHAT, tool(parameters={"not": {}}, strict=True), "tools", "invalid_value"),
        (CHAT, {"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        (COMPLETE, {"stream_options": {}, "stream": False}, "stream_options", "invalid_value"),
        (RESPOND, {"stream_options": {}}, "stream_options", "invalid_value"),
        (CHAT, {"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        (CHAT, {"logit_bias": {"5": "1"}}, "logit_bias", "invalid_type"),
        (CHAT, {"logit_bias": {"1024": 1}}, "logit_bias", "invalid_value"),
        (RESPOND, {"metadata": {"a": 1}}, "metadata", "invalid_type"),
        (COMPLETE, {"prompt": [1024]}, "prompt", "invalid_value"),
        (COMPLETE, {"prompt": [5] * 2048}, "prompt", "context_length_exceeded"),
        (CHAT, {"messages": [{"role": "user", "content": "a " * 2100}]}, "messages", "context_length_exceeded"),
        (RESPOND, {"input": "a " * 2100}, "input", "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_mistakes_are_named(
    http: httpx.Client, path: str, options: dict[str, Any], param: str, code: str, is_stream: bool
) -> None:
    if is_stream and "stream_options" in options:
        options = options | {"stream": None}
    elif is_stream:
        options = options | {"stream": True}
    answer = http.post(path, json=_BODIES[path] | options)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), error
    assert (error["param"], error["code"]) == (param, code), error


def test_tokens_of_no_model_are_named_by_its_first_worker(tmp_path: Path) -> None:
    """The load balancer does not know the vocabulary before."""
    mistakes: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"stop_token_ids": [1024]}),
        (COMPLETE, {"logit_bias": {"5": 1, "1024": 1}, "n": 2}),
        (COMPLETE, {"prompt": [5, 1024]}),
    ]
    with (
        running(tmp_path, _MODELS, 0) as server,
        httpx.Client(base_url=server.base_url, timeout=PATIENCE_S) as client,
        ThreadPoolExecutor(len(mistakes)) as pool,
    ):

        def ask(path: str, options: dict[str, Any]) -> tuple[int, Any]:
            answer = client.post(path, json=_BODIES[path] | options)
            return answer.status_code, answer.json()

        early = [pool.submit(ask, *mistake) for mistake in mistakes]
        tasks = len(mistakes) + 1
        wait_until(lambda: server.snapshot().models[0].queued == tasks, "the tasks of all requests in the queue")
        server.wait_for_workers(server.start_worker("tiny"))
        for mistake, answer in zip(mistakes, early, strict=True):
            status, body = answer.result()
            assert (status, body) == ask(*mistake)
            assert (status, body["error"]["param"]) == (400, next(iter(mistake[1])))


@pytest.mark.parametrize(
    ("path", "options"),
    [
        (CHAT, schema(_OPTIONAL)),
        (CHAT, schema({"$ref": "#"})),
        (CHAT, schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})),
        (CHAT, tool(parameters={"type": "object", "properties": {"x": {"$ref": "#"}}}) | {"tool_choice": "required"}),
        (COMPLETE, {"prompt": [5] * 2047}),
        (COMPLETE, {"prompt": ""}),
        (COMPLETE, {"seed": -(2**63), "n": 2, "temperature": 1}),
        (RESPOND, {"text": {"format": {"type": "text", "schema": None}}}),
    ],
)
def test_odd_requests_are_answered(http: httpx.Client, path: str, options: dict[str, Any]) -> None:
    answer = http.post(path, json=_BODIES[path] | options)
    assert answer.status_code == 200, answer.text


def test_answer_without_reasoning(http: httpx.Client) -> None:
    options = schema({"enum": ["yes", "no"]}) | {"chat_template_kwargs": {"enable_thinking": False}}
    [choice] = http.post(CHAT, json=_BODIES[CHAT] | options).json()["choices"]
    assert choice["message"]["content"] in ('"yes"', '"no"')


def test_stop_text_in_the_arguments_of_a_call(http: httpx.Client) -> None:
    integers = {name: {"type": "integer"} for name in ("a", "b")}
    options = tool(parameters={"type": "object", "properties": integers, "required": ["a", "b"]})
    for stop, finish in ((["3"], "stop"), (["</tool_call>"], "tool_calls"), ([], "tool_calls")):
        body = _BODIES[CHAT] | options | {"tool_choice": "required", "stop": stop}
        [choice] = http.post(CHAT, json=body).json()["choices"]
        [call] = choice["message"]["tool_calls"]
        assert (choice["finish_reason"], call["function"]["name"]) == (finish, "add"), stop
        assert call["function"]["arguments"].endswith("}") == (finish == "tool_calls")
