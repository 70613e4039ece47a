"""`POST /v1/responses`: the response and its items."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from loadbalancer.schema.text.logprobs import ChatLogprob
from loadbalancer.schema.text.usage import TextUsage

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """The content of a message."""

    text: str
    annotations: list[Any] = []
    logprobs: list[ChatLogprob] = []


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """The content of reasoning."""

    text: str


class MessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """A message of the model."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class ReasoningItem(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """Reasoning of the model."""

    id: str
    status: ItemStatus
    content: list[ReasoningText]
    summary: list[Any] = []


class FunctionCallItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    """A function call of the model. Its output is an item of the next request."""

    id: str
    call_id: str
    name: str
    arguments: Annotated[str, msgspec.Meta(description="JSON as the model has written it.")]
    status: ItemStatus


OutputItem = MessageItem | ReasoningItem | FunctionCallItem


class CachedTokens(msgspec.Struct, frozen=True):
    """Tokens of the input that were found in the prefix cache."""

    cached_tokens: int


class ReasoningTokens(msgspec.Struct, frozen=True):
    """Tokens of the output that are reasoning."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """The usage of a response."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(msgspec.Struct, frozen=True):
    """Why a response has failed."""

    code: str
    message: str


class ResponseEcho(msgspec.Struct, frozen=True):
    """Parameters of the request that the response has."""

    instructions: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    tools: list[dict[str, Any]]
    tool_choice: Any
    text: dict[str, Any]
    reasoning: dict[str, Any]
    metadata: dict[str, str]
    parallel_tool_calls: bool = True
    top_logprobs: int = 0


class ResponseAnswer(ResponseEcho, frozen=True, kw_only=True):
    """A response, complete or not."""

    id: str
    created_at: int
    model: str
    status: ResponseStatus
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    object: Literal["response"] = "response"
    previous_response_id: None = None
    store: bool = False
    truncation: Literal["disabled"] = "disabled"
    background: bool = False


def response_usage(usage: TextUsage) -> ResponseUsage:
    return ResponseUsage(
        usage.prompt_tokens,
        CachedTokens(usage.prompt_tokens_details.cached_tokens),
        usage.completion_tokens,
        ReasoningTokens(usage.completion_tokens_details.reasoning_tokens),
        usage.total_tokens,
    )
