"""`POST /v1/chat/completions`: the response, and the chunks of a stream."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from loadbalancer.schema.text.logprobs import ChatLogprobs
from loadbalancer.schema.text.pieces import ParsedText
from loadbalancer.schema.text.usage import TextUsage

FinishReason = Literal["stop", "length", "tool_calls"]


class FunctionAnswer(msgspec.Struct, frozen=True):
    """The function that the model calls."""

    name: str
    arguments: Annotated[str, msgspec.Meta(description="JSON as the model has written it.")]


class ToolCallAnswer(msgspec.Struct, frozen=True):
    """A tool call of the model."""

    id: str
    function: FunctionAnswer
    type: Literal["function"] = "function"


class AssistantMessage(msgspec.Struct, frozen=True):
    """The message of a choice."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: (
        Annotated[str, msgspec.Meta(description="What stands between the reasoning marks.")] | UnsetType
    ) = UNSET
    reasoning: Annotated[str, msgspec.Meta(description="The same, under another name.")] | UnsetType = UNSET
    tool_calls: list[ToolCallAnswer] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One of `n` messages."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None
    stop_reason: (
        Annotated[str | int, msgspec.Meta(description="The text or the token of `stop` that ended it.")] | None
    ) = None


class ChatAnswer(msgspec.Struct, frozen=True):
    """The response to a chat."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TextUsage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: None = None


class FunctionDelta(msgspec.Struct, frozen=True):
    """A part of a `ToolCallDelta`."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A part of a tool call; the first has the id and the name."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET


class ChatDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """A choice of a `ChatChunk`."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | UnsetType | None = UNSET


class ChatChunk(msgspec.Struct, frozen=True):
    """An event of a chat's stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: TextUsage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: None = None


def assistant_message(text: ParsedText, call_ids: list[str]) -> AssistantMessage:
    """Return the message. A text with nothing but tool calls has no content."""
    calls = [
        ToolCallAnswer(id_, FunctionAnswer(call.name, call.arguments))
        for id_, call in zip(call_ids, text.calls, strict=True)
    ]
    reasoning = text.reasoning or UNSET
    return AssistantMessage(
        text.content or (None if calls or text.reasoning else ""),
        reasoning_content=reasoning,
        reasoning=reasoning,
        tool_calls=calls or UNSET,
    )
