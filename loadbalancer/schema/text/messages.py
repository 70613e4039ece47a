"""The messages of a chat: as clients send them, and as chat templates take them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.parsing import shorten
from loadbalancer.schema.text.fields import Ignored, Unsupported

Role = Literal["system", "developer", "user", "assistant", "tool"]
#: Of a part that holds a text.
_TEXT_PARTS = ("text", "input_text", "output_text")


class ContentPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message. Only texts are supported."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Unsupported = None
    input_audio: Unsupported = None
    file: Unsupported = None
    cache_control: Ignored = None
    annotations: Ignored = None
    logprobs: Ignored = None
    prompt_cache_breakpoint: Ignored = None
    parsed: Ignored = None


class CalledFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The function of a `ToolCall`."""

    name: Annotated[str, msgspec.Meta(max_length=128)]
    arguments: Annotated[str, msgspec.Meta(description="A JSON object.")] | None = None
    parsed_arguments: Ignored = None


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call of an earlier message of the assistant."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None
    index: Ignored = None


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message of a chat."""

    role: Role
    content: str | list[ContentPart] | None = None
    name: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: Annotated[str, msgspec.Meta(description="Reasoning of an earlier answer.")] | None = None
    reasoning: Annotated[str, msgspec.Meta(description="The same, under another name.")] | None = None
    refusal: str | None = None
    annotations: Ignored = None
    parsed: Ignored = None
    audio: Unsupported = None
    function_call: Unsupported = None


def template_messages(messages: Sequence[ChatMessage], place: str) -> list[dict[str, Any]]:
    """Return the messages for a chat template: contents are texts, arguments of calls are objects.

    `place` is the name of their list in the request. Raises `InvalidRequest` for contents that are no text.
    """
    return [_template_message(message, f"{place}[{index}]") for index, message in enumerate(messages)]


def _template_message(message: ChatMessage, place: str) -> dict[str, Any]:
    for name in ("audio", "function_call"):
        if getattr(message, name) is not None:
            raise InvalidRequest(
                f"Unsupported parameter: '{place}.{name}'.", param=f"{place}.{name}", code="unsupported_parameter"
            )
    found: dict[str, Any] = {"role": message.role}
    reasoning = message.reasoning_content or message.reasoning
    if message.content is None and not (message.tool_calls or message.refusal or reasoning):
        name = f"{place}.content"
        raise InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    found["content"] = _text(message.content, f"{place}.content") or message.refusal or ""
    if reasoning:
        found["reasoning_content"] = reasoning
    if message.name is not None:
        found["name"] = message.name
    if message.tool_calls:
        if message.role != "assistant":
            text = f"Invalid value for '{place}.tool_calls': Only the assistant calls tools."
            raise InvalidRequest(text, param=f"{place}.tool_calls")
        found["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    return found


def _text(content: str | list[ContentPart] | None, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in (*_TEXT_PARTS, "refusal"):
            name = f"{place}[{index}].type"
            raise InvalidRequest(
                f"Unsupported value for '{name}': {shorten(part.type)}. Only texts are supported.",
                param=name,
                code="unsupported_value",
            )
        if text is None:
            name = f"{place}[{index}].text"
            raise InvalidRequest(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
        texts.append(text)
    return "\n".join(texts)


def _template_call(call: ToolCall) -> dict[str, Any]:
    arguments: Any = call.function.arguments or "{}"
    with contextlib.suppress(msgspec.MsgspecError, RecursionError, UnicodeError):  # else as the model wrote it
        arguments = msgspec.json.decode(arguments, type=dict[str, Any])
    function = {"name": call.function.name, "arguments": arguments}
    return {"type": "function", "function": function} | ({} if call.id is None else {"id": call.id})
