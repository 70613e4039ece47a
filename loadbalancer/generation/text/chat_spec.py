"""Resolves a chat into a complete specification: defaults, bounds, prompt. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from configs.settings import Settings
from configs.text_settings import TextLimits
from loadbalancer.access.api_keys import Caller
from loadbalancer.generation.text.sampling import TokenLimits, resolve_inputs
from loadbalancer.generation.text.text_model import check_chat_chars, text_spec
from loadbalancer.generation.text.text_spec import OutputFormat, TextSpec
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.parsing import shorten
from loadbalancer.schema.text.chat_request import ChatRequest
from loadbalancer.schema.text.json_bounds import JsonBounds, bounded_object, is_absent
from loadbalancer.schema.text.messages import ChatMessage, template_messages
from loadbalancer.schema.text.tools import (
    AnyToolChoice,
    Tool,
    chosen_tool,
    json_schema_of,
    offered_tools,
    tool_definitions,
)
from wire.messages import EngineInfo
from wire.text import ChatPrompt, TextInfo, encode_prompt

_VARIABLE = re.compile(r"[a-z_][a-z0-9_]{0,63}")
#: Variables that have a parameter of their own, and arguments of the function that renders templates.
_RESERVED = frozenset(
    [
        "messages",
        "conversation",
        "conversations",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "self",
        "bos_token",
        "eos_token",
    ]
)
_ARGUMENT_BOUNDS = JsonBounds(16 << 10, "the maximum", 8)


def chat_spec(
    request: ChatRequest, settings: Settings, engine: EngineInfo | None, random_seed: int, caller: Caller, model: str
) -> TextSpec:
    """Return the specification of `POST /v1/chat/completions`. Raises `InvalidRequest`.

    `engine` is that of the `model`; None until a worker has connected.
    """
    info, limits = engine.text if engine is not None else None, settings.models[model].text.limits
    check_has_chat(info, model)
    prompt, output = chat_prompt(
        request.messages,
        request.tools or [],
        request.tool_choice,
        template_arguments(request.reasoning_effort, request.chat_template_kwargs),
        limits,
        info,
        model,
        has_format=request.response_format is not None and request.response_format.type != "text",
        continues=request.continue_final_message is True or request.add_generation_prompt is False,
        parallel_calls=request.parallel_tool_calls,
    )
    max_tokens = TokenLimits("max_tokens", request.max_tokens)
    if request.max_completion_tokens is not None:
        max_tokens = TokenLimits("max_completion_tokens", request.max_completion_tokens)
    inputs = resolve_inputs(
        request,
        settings.models[model].text,
        info,
        random_seed,
        max_tokens,
        logprobs=_logprobs(request),
        json_schema=json_schema_of(request.response_format, schema_bounds(limits)),
    )
    frame = encode_prompt(prompt)
    check_chat_chars(frame, "messages", limits.max_prompt_chars)
    return text_spec(request, model, inputs, [frame], settings, caller, output)


def check_has_chat(info: TextInfo | None, model: str) -> None:
    """Raises `InvalidRequest` for a model without a chat template."""
    if info is not None and not info.chat:
        text = f"The model '{model}' has no chat template: use POST /v1/completions."
        raise InvalidRequest(text, param="model", code="unsupported_endpoint")


def _check_has_tools(info: TextInfo | None, model: str) -> None:
    """Raises `InvalidRequest` for a model whose template has no place for tools."""
    if info is not None and info.tool_calls is None:
        text = f"The model '{model}' has no format for tool calls in its chat template (text.tool_calls can name one)."
        raise InvalidRequest(text, param="tools", code="unsupported_parameter")


def schema_bounds(limits: TextLimits) -> JsonBounds:
    return JsonBounds(limits.max_schema_bytes, "text.limits.max_schema_bytes")


def chat_prompt(
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    tool_choice: AnyToolChoice | None,
    arguments: dict[str, Any],
    limits: TextLimits,
    info: TextInfo | None,
    model: str,
    *,
    place: str = "messages",
    has_format: bool = False,
    continues: bool = False,
    parallel_calls: bool | None = None,
) -> tuple[ChatPrompt, OutputFormat]:
    """Return the prompt, and how its text is divided. Raises `InvalidRequest`.

    `place` is the name of the messages in the request. `has_format`: the text has to be JSON.
    """
    if len(messages) > limits.max_messages:
        text = f"Invalid value for '{place}': {len(messages)} messages. At most {limits.max_messages} are allowed"
        raise InvalidRequest(f"{text} (text.limits.max_messages).", param=place)
    choice = chosen_tool(tool_choice, tools)
    definitions = offered_tools(tool_choice, tool_definitions(tools, limits.max_tools, schema_bounds(limits)))
    has_tools = bool(tools) and choice != "none"
    if has_tools:
        _check_has_tools(info, model)
        if has_format and choice != "auto":
            text = "Invalid value for 'tool_choice': With JSON as the format of the text, a call cannot be forced."
            raise InvalidRequest(text, param="tool_choice")
    if continues and messages[-1].role != "assistant":
        text = f"Invalid value for '{place}': Only a last message of the assistant can be continued."
        raise InvalidRequest(text, param=place)
    rendered = template_messages(messages, place)
    prompt = ChatPrompt(rendered, definitions, choice, arguments, add_generation_prompt=not continues)
    return prompt, OutputFormat(has_tools, reasoning=True, parallel_calls=parallel_calls is not False)


def template_arguments(effort: str | None, given: msgspec.Raw) -> dict[str, Any]:
    """Return the variables of the chat template. Raises `InvalidRequest` for those that a request must not set."""
    found: dict[str, Any] = {}
    if effort is not None:
        found["reasoning_effort"] = effort
        if effort == "none":
            found["enable_thinking"] = False
    if not is_absent(given):
        name = "chat_template_kwargs"
        values = bounded_object(given, name, _ARGUMENT_BOUNDS)
        for key in values:
            if not _VARIABLE.fullmatch(key) or key in _RESERVED:
                text = f"Invalid value for '{name}': {shorten(key)} cannot be set by a request."
                raise InvalidRequest(text, param=name)
        found |= values
    return found


def _logprobs(request: ChatRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise InvalidRequest("Invalid value for 'top_logprobs': It needs 'logprobs': true.", param="top_logprobs")
    return None
