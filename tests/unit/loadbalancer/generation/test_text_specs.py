"""Requests of the text API become complete specifications: defaults, prompts, choices."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from configs.settings import Settings
from loadbalancer.access.api_keys import Caller
from loadbalancer.generation.text.text_resolution import resolve_text, text_options
from loadbalancer.generation.text.text_spec import OutputFormat, TextSpec
from loadbalancer.schema.errors import ApiError, InvalidRequest
from loadbalancer.schema.text.text_requests import CHAT_PATH, COMPLETION_PATH, RESPONSE_PATH, parse_text
from wire.messages import EngineInfo
from wire.text import (
    ChatPrompt,
    PlainPrompt,
    SamplingDefaults,
    TextInfo,
    TokenPrompt,
    ToolCallFormat,
    decode_prompt,
)

INFO = TextInfo(
    4096,
    chat=True,
    tool_calls=ToolCallFormat("<t>", "</t>"),
    vocabulary=100,
    defaults=SamplingDefaults(temperature=0.6, top_k=20, top_p=0.9),
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
BODIES: dict[str, dict[str, Any]] = {
    CHAT_PATH: {"messages": [{"role": "user", "content": "hello"}]},
    COMPLETION_PATH: {"prompt": "hello"},
    RESPONSE_PATH: {"input": "hello"},
}


def resolve(path: str, info: TextInfo | None = INFO, settings_of_text: Any = None, **body: Any) -> TextSpec:
    model = {"engine": "sim", "sim": {"task": "text"}, "text": settings_of_text or {}}
    settings = Settings.model_validate({"models": {"m": model}, "data_dir": "/tmp"})
    request = parse_text(path, msgspec.json.encode(BODIES[path] | body))
    engine = None if info is None else EngineInfo(text=info)
    return resolve_text(request, settings, engine, 77, Caller("alice", 2.0, tokens_per_minute=9), "m")


def prompt(spec: TextSpec, index: int = 0) -> Any:
    return decode_prompt(spec.frames[index])


@pytest.mark.parametrize("path", BODIES)
def test_defaults_come_from_request_configuration_checkpoint(path: str) -> None:
    configured = {"defaults": {"temperature": 0.3, "min_p": 0.1}}
    sampling = resolve(path, settings_of_text=configured, top_p=0.5, top_k=-1).inputs[0].sampling
    assert (sampling.temperature, sampling.min_p) == (0.3, 0.1), "as configured"
    assert (sampling.top_p, sampling.top_k) == (0.5, 0), "of the request"
    sampling = resolve(path).inputs[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.9, 20), "of the checkpoint"
    sampling = resolve(path, info=None).inputs[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (1.0, 1.0, 0, 77), "OpenAI's"


@pytest.mark.parametrize("path", BODIES)
def test_worker_sets_what_an_unknown_checkpoint_may_set(path: str) -> None:
    configured = {"defaults": {"temperature": 0.3}}
    sampling = resolve(path, info=None, settings_of_text=configured, top_p=0.5).inputs[0].sampling
    assert sampling.unset == ("top_k", "min_p", "repetition_penalty")
    assert resolve(path, settings_of_text=configured, top_p=0.5).inputs[0].sampling.unset == ()


@pytest.mark.parametrize(("given", "expected"), [(0, 0.0), (1e-300, 0.0), (1e-40, 0.0), (1e-30, 1e-30), (1e-5, 1e-5)])
def test_temperature_that_overflows_float32_is_zero(given: float, expected: float) -> None:
    assert resolve(CHAT_PATH, temperature=given).inputs[0].sampling.temperature == expected
    configured = {"defaults": {"temperature": given}}
    assert resolve(CHAT_PATH, settings_of_text=configured).inputs[0].sampling.temperature == expected


@pytest.mark.parametrize(
    ("path", "text", "body", "expected"),
    [
        (CHAT_PATH, {}, {}, 4096),
        (CHAT_PATH, {"limits": {"max_tokens": 50}}, {}, 50),
        (CHAT_PATH, {"defaults": {"max_tokens": 60}, "limits": {"max_tokens": 50}}, {}, 50),
        (CHAT_PATH, {"defaults": {"max_tokens": 40}}, {}, 40),
        (CHAT_PATH, {}, {"max_tokens": 7, "max_completion_tokens": 8}, 8),
        (COMPLETION_PATH, {}, {}, 16),
        (COMPLETION_PATH, {"defaults": {"max_tokens": 40}}, {}, 40),
        (RESPONSE_PATH, {}, {"max_output_tokens": 9}, 9),
    ],
)
def test_length_of_a_text(path: str, text: Any, body: dict[str, Any], expected: int) -> None:
    assert resolve(path, settings_of_text=text, **body).inputs[0].max_tokens == expected


def test_choices_share_their_prompt_and_differ_in_seed() -> None:
    spec = resolve(COMPLETION_PATH, prompt=["a", "b"], n=2, seed=-1, priority=3, timeout_s=5, logprobs=2)
    assert [each.sampling.seed for each in spec.inputs] == [2**63 - 1, 0] * 2
    assert [prompt(spec, index) for index in range(4)] == [PlainPrompt("a")] * 2 + [PlainPrompt("b")] * 2
    assert (spec.choices, spec.priority, spec.timeout_s, spec.owner, spec.weight) == (2, 3, 5, "alice", 2.0)
    assert (spec.inputs[0].logprobs, spec.tokens_per_minute) == (2, 9)


def test_tokens_are_a_prompt() -> None:
    assert prompt(resolve(COMPLETION_PATH, prompt=[1, 2, 3])) == TokenPrompt([1, 2, 3])
    with pytest.raises(ApiError, match="from 0 to 99"):
        resolve(COMPLETION_PATH, prompt=[100])


def test_sampling_of_a_request_is_passed_on() -> None:
    body: dict[str, Any] = {
        "logit_bias": {"5": 2, "3": -1},
        "stop": ["x", "x", "y"],
        "stop_token_ids": [4],
        "ignore_eos": True,
    }
    inputs = resolve(CHAT_PATH, presence_penalty=1, frequency_penalty=-1, min_tokens=2, top_p=0, **body).inputs[0]
    assert inputs.sampling.logit_bias == ((3, -1.0), (5, 2.0))
    assert (inputs.stop, inputs.stop_token_ids, inputs.min_tokens, inputs.ignore_eos) == (("x", "y"), (4,), 2, True)
    assert 0 < inputs.sampling.top_p < 1e-3, "the most probable token alone"


MESSAGES = [
    {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "short"}]},
    {"role": "user", "content": "weather?", "name": "ann"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    {"role": "assistant", "content": "It is"},
]
RENDERED: list[dict[str, Any]] = [
    {"role": "developer", "content": "be\nshort"},
    {"role": "user", "content": "weather?", "name": "ann"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}, "id": "c"}],
    },
    {"role": "tool", "content": "sunny", "tool_call_id": "c"},
    {"role": "assistant", "content": "It is"},
]


def test_messages_are_for_a_chat_template() -> None:
    spec = resolve(CHAT_PATH, messages=MESSAGES, continue_final_message=True, chat_template_kwargs={"mood": "dry"})
    expected = ChatPrompt(RENDERED, [], "none", {"mood": "dry"}, add_generation_prompt=False)
    assert prompt(spec) == expected
    assert spec.output == OutputFormat(reasoning=True)


@pytest.mark.parametrize(
    ("message", "is_taken"),
    [
        ({"content": None, "reasoning_content": "hm", "reasoning": "hm"}, True),
        ({"content": None, "reasoning": "hm"}, True),
        ({"content": None, "refusal": "no"}, True),
        ({"content": ""}, True),
        ({"content": None, "reasoning_content": ""}, False),
        ({}, False),
    ],
)
def test_answer_that_was_cut_within_its_reasoning_is_a_message(message: dict[str, Any], is_taken: bool) -> None:
    """Clients send back the message that they got, which has no content then."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", **message}, {"role": "user", "content": "b"}]
    if is_taken:
        resolve(CHAT_PATH, messages=messages)
    else:
        with pytest.raises(InvalidRequest, match=r"'messages\[1\].content'"):
            resolve(CHAT_PATH, messages=messages)


@pytest.mark.parametrize(("given", "expected"), [(None, True), (True, True), (False, False)])
def test_one_call_at_a_time_can_be_asked_for(given: bool | None, expected: bool) -> None:
    spec = resolve(CHAT_PATH, messages=MESSAGES, continue_final_message=True, parallel_tool_calls=given)
    assert spec.output.parallel_calls == expected


def test_items_are_the_messages_of_a_chat() -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "be\nshort"}]},
        {"type": None, "role": "user", "content": "weather?", "name": None},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "It is"}]},
    ]
    spec = resolve(RESPONSE_PATH, input=items, instructions="now", reasoning={"effort": "none"})
    without_name = {"role": "user", "content": "weather?"}
    expected = [{"role": "system", "content": "now"}, RENDERED[0], without_name, *RENDERED[2:]]
    assert prompt(spec).messages == expected
    assert prompt(spec).template_arguments == {"reasoning_effort": "none", "enable_thinking": False}


@pytest.mark.parametrize(
    ("written", "expected"),
    [('{"a": 1}', {"a": 1}), ("", {}), (None, {}), ('{"a": ', '{"a": '), ("[1]", "[1]"), ('"x"', '"x"')],
)
def test_malformed_arguments_stay_as_the_model_wrote_them(written: str | None, expected: Any) -> None:
    call = {"id": "c", "type": None, "function": {"name": "f", "arguments": written}}
    message = prompt(resolve(CHAT_PATH, messages=[{"role": "assistant", "tool_calls": [call]}])).messages[0]
    assert message["tool_calls"][0]["function"]["arguments"] == expected


@pytest.mark.parametrize(
    ("path", "tools", "choice"),
    [
        (CHAT_PATH, [TOOL], {"type": "function", "function": {"name": "f"}}),
        (RESPONSE_PATH, [{"type": "function"} | TOOL["function"]], {"type": "function", "name": "f"}),  # type: ignore[operator]
    ],
)
@pytest.mark.parametrize("given", ["none", "auto", "required", "named", None])
def test_choice_of_a_tool(path: str, tools: Any, choice: Any, given: str | None) -> None:
    spec = resolve(path, tools=tools, tool_choice=choice if given == "named" else given)
    made = prompt(spec)
    assert made.tool_choice == {"named": "f", None: "auto"}.get(given, given)
    assert made.tools[0]["function"] == {"description": ""} | TOOL["function"]  # type: ignore[operator]
    assert spec.output.tools == (given != "none")


OTHER = {"type": "function", "function": {"name": "g"}}


@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("path", [CHAT_PATH, RESPONSE_PATH])
def test_some_tools_are_allowed(path: str, mode: str) -> None:
    tools: list[Any] = [TOOL, OTHER]
    allowed: Any = {"mode": mode, "tools": [{"type": "function", "function": {"name": "g"}}]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
    if path == RESPONSE_PATH:
        tools = [{"type": "function"} | tool["function"] for tool in tools]
        choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "g"}]}
    made = prompt(resolve(path, tools=tools, tool_choice=choice))
    assert [tool["function"]["name"] for tool in made.tools] == ["g"]
    assert made.tool_choice == mode
    with pytest.raises(ApiError, match="no function named 'g'"):
        resolve(path, tools=tools[:1], tool_choice=choice)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT_PATH, {"response_format": {"type": "text"}}, ""),
        (CHAT_PATH, {"response_format": {"type": "json_object"}}, "{}"),
        (COMPLETION_PATH, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}}, '{"a":1}'),
        (RESPONSE_PATH, {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"a": 1}}}}, '{"a":1}'),
    ],
)
def test_format_is_a_schema(path: str, body: dict[str, Any], expected: str) -> None:
    assert resolve(path, **body).inputs[0].json_schema == expected


@pytest.mark.parametrize(
    ("info", "body", "text"),
    [
        (TextInfo(chat=False), {}, "no chat template"),
        (TextInfo(chat=True), {"tools": [TOOL]}, "no format for tool calls"),
        (INFO, {"tools": [TOOL | {"function": {"name": "auto"}}]}, "reserved"),
        (INFO, {"chat_template_kwargs": {"tools": []}}, "cannot be set"),
    ],
)
def test_what_the_model_has_not_is_refused(info: TextInfo, body: dict[str, Any], text: str) -> None:
    with pytest.raises(ApiError, match=text):
        resolve(CHAT_PATH, info, **body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"top_logprobs": 3}, 3),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, 2),
    ],
)
def test_responses_have_logprobs_on_request(body: dict[str, Any], expected: int | None) -> None:
    assert resolve(RESPONSE_PATH, **body).inputs[0].logprobs == expected


@pytest.mark.parametrize(
    ("info", "body", "expected"),
    [
        (INFO, {}, (0.6, 0.9)),
        (INFO, {"temperature": 1e-40, "top_p": 0}, (1e-40, 0.0)),
        (None, {}, (None, None)),
        (None, {"top_p": 0.5}, (None, 0.5)),
    ],
)
def test_response_repeats_what_was_sent_or_is_known(
    info: TextInfo | None, body: dict[str, Any], expected: tuple[float | None, float | None]
) -> None:
    request = parse_text(RESPONSE_PATH, msgspec.json.encode(BODIES[RESPONSE_PATH] | body))
    echo = msgspec.json.decode(text_options(request, resolve(RESPONSE_PATH, info=info, **body)).echo)
    assert (echo["temperature"], echo["top_p"]) == expected


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("part", ["a", "\xe9", "\u4e2d", "\U0001f993", "a\n", '"', "\\", "\x01", "\\u0041", "\\u00"])
def test_prompts_are_bounded_by_their_characters(path: str, part: str) -> None:
    """Not by their bytes, nor by those of their JSON."""
    name = {CHAT_PATH: "messages", COMPLETION_PATH: "prompt", RESPONSE_PATH: "input"}[path]
    settings = {"limits": {"max_prompt_chars": 1000}}

    def body(chars: int) -> Any:
        text = (part * chars)[:chars]
        return [{"role": "user", "content": text}] if path == CHAT_PATH else text

    resolve(path, settings_of_text=settings, **{name: body(900)})
    with pytest.raises(InvalidRequest, match="1000 are allowed") as caught:
        resolve(path, settings_of_text=settings, **{name: body(2500)})
    assert caught.value.param == name


def test_job_keeps_what_its_response_needs() -> None:
    body = BODIES[RESPONSE_PATH] | {"instructions": "now", "metadata": {"a": "b"}, "temperature": 0.5}
    request = parse_text(RESPONSE_PATH, msgspec.json.encode(body))
    options = text_options(request, resolve(RESPONSE_PATH, **body))
    echo = msgspec.json.decode(options.echo)
    assert (echo["instructions"], echo["metadata"], echo["temperature"]) == ("now", {"a": "b"}, 0.5)
    assert options.reasoning
    assert not options.tools
