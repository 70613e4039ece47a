"""`POST /v1/responses` by OpenAI's client, and what it refuses, on the simulated language model."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from scripts.harness.balancer import Server
from tests.support.texts import RESPOND, client, expected_text


@pytest.fixture
def api(shared: Server) -> openai.OpenAI:
    return client(shared.base_url)


def ask(api: openai.OpenAI, **options: Any) -> Any:
    return api.responses.create(**{"model": "words", "input": "hello", "extra_body": {"seed": 3}} | options)


def test_response_is_answered(api: openai.OpenAI) -> None:
    answer = ask(api, max_output_tokens=5, instructions="be short", metadata={"a": "b"}, temperature=0.5)
    assert answer.output_text == expected_text(3, 5)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.usage.output_tokens, answer.instructions, answer.metadata) == (5, "be short", {"a": "b"})
    assert (answer.temperature, answer.top_p, answer.store) == (0.5, 1.0, False)
    [item] = answer.output
    assert (item.type, item.role) == ("message", "assistant")


def test_stop_completes_a_response(api: openai.OpenAI) -> None:
    answer = ask(api, extra_body={"seed": 3, "stop": expected_text(3, 9).split()[-1]})
    assert answer.status == "completed"
    assert answer.output[0].status == "completed"


def test_stream_has_the_events_of_openai(api: openai.OpenAI) -> None:
    events = list(ask(api, max_output_tokens=4, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events[4:-4])
    assert text == events[-4].text == events[-1].response.output_text == expected_text(3, 4)


def test_openai_stream_helper_reads_it(api: openai.OpenAI) -> None:
    with api.responses.stream(model="words", input="hello", max_output_tokens=3) as stream:
        kinds = [event.type for event in stream]
    assert kinds[-1] == "response.incomplete"


CONVERSATION = [
    {"role": "developer", "content": "be short"},
    {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bern"}', "id": "fc_1"},
    {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sunny.", "annotations": []}]},
    {"role": "user", "content": "thanks"},
]


def test_items_of_a_conversation_are_accepted(api: openai.OpenAI) -> None:
    answer = ask(api, input=CONVERSATION, max_output_tokens=2, store=False, include=["reasoning.encrypted_content"])
    assert answer.output_text == expected_text(3, 2)


def test_output_of_a_response_is_accepted_as_input(api: openai.OpenAI) -> None:
    first = ask(api, max_output_tokens=2)
    for output in (first.output, [item.model_dump() for item in first.output]):
        conversation = [{"role": "user", "content": "hello"}, *output, {"role": "user", "content": "go on"}]
        assert ask(api, input=conversation, max_output_tokens=2).output_text == expected_text(3, 2)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"store": True}, "store", "unsupported_value"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "c"}, "conversation", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_value"),
        ({"truncation": "auto"}, "truncation", "unsupported_value"),
        ({"include": ["computer_call_output.output.image_url"]}, "include", "unsupported_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "unsupported_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", None),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", None),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "missing_required_parameter"),
        ({"max_output_tokens": 20_001}, "max_output_tokens", "invalid_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)
def test_refused_request_names_its_parameter(
    http: httpx.Client, change: dict[str, Any], param: str, code: str | None
) -> None:
    answer = http.post(RESPOND, json={"model": "words", "input": "hello"} | change)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == param, error["message"]
    assert code in (None, error["code"])


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "words"}, 400, "model"),
        ({"model": "none"}, 404, "model"),
        ({"input": [1, 2]}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"encoding_format": "hex"}, 400, "encoding_format"),
    ],
)
def test_refused_embeddings_name_their_parameter(
    http: httpx.Client, body: dict[str, Any], status: int, param: str
) -> None:
    answer = http.post("/v1/embeddings", json={"input": "text", "model": "echo"} | body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_result_that_is_no_vector_is_no_embedding(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"input": "text", "model": "echo"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "invalid_result")
