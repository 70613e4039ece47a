"""The events of a response's stream, as OpenAI's Responses API has them."""

from __future__ import annotations

import msgspec

from loadbalancer.schema.text.logprobs import ChatLogprob
from loadbalancer.schema.text.response_answer import OutputItem, OutputText, ReasoningText, ResponseAnswer

_encode = msgspec.json.Encoder().encode


class ResponseEvent(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """Base of all events. They are numbered from 0."""

    sequence_number: int = 0


class ResponseCreated(ResponseEvent, frozen=True, tag="response.created"):
    """The first event."""

    response: ResponseAnswer


class ResponseInProgress(ResponseEvent, frozen=True, tag="response.in_progress"):
    """The second event."""

    response: ResponseAnswer


class ResponseCompleted(ResponseEvent, frozen=True, tag="response.completed"):
    """The last event of a complete response."""

    response: ResponseAnswer


class ResponseIncomplete(ResponseEvent, frozen=True, tag="response.incomplete"):
    """The last event of a response that is longer than allowed."""

    response: ResponseAnswer


class ResponseFailed(ResponseEvent, frozen=True, tag="response.failed"):
    """The last event of a response that has failed."""

    response: ResponseAnswer


class OutputItemAdded(ResponseEvent, frozen=True, tag="response.output_item.added"):
    """An item begins."""

    output_index: int
    item: OutputItem


class OutputItemDone(ResponseEvent, frozen=True, tag="response.output_item.done"):
    """An item is complete."""

    output_index: int
    item: OutputItem


class ContentPartAdded(ResponseEvent, frozen=True, tag="response.content_part.added"):
    """The content of a message or of reasoning begins."""

    item_id: str
    output_index: int
    part: OutputText | ReasoningText
    content_index: int = 0


class ContentPartDone(ResponseEvent, frozen=True, tag="response.content_part.done"):
    """The content of a message or of reasoning is complete."""

    item_id: str
    output_index: int
    part: OutputText | ReasoningText
    content_index: int = 0


class OutputTextDelta(ResponseEvent, frozen=True, tag="response.output_text.delta"):
    """A part of a message."""

    item_id: str
    output_index: int
    delta: str
    content_index: int = 0
    logprobs: list[ChatLogprob] = []


class OutputTextDone(ResponseEvent, frozen=True, tag="response.output_text.done"):
    """The text of a message."""

    item_id: str
    output_index: int
    text: str
    content_index: int = 0
    logprobs: list[ChatLogprob] = []


class ReasoningTextDelta(ResponseEvent, frozen=True, tag="response.reasoning_text.delta"):
    """A part of reasoning."""

    item_id: str
    output_index: int
    delta: str
    content_index: int = 0


class ReasoningTextDone(ResponseEvent, frozen=True, tag="response.reasoning_text.done"):
    """The text of reasoning."""

    item_id: str
    output_index: int
    text: str
    content_index: int = 0


class CallArgumentsDelta(ResponseEvent, frozen=True, tag="response.function_call_arguments.delta"):
    """A part of the arguments of a function call."""

    item_id: str
    output_index: int
    delta: str


class CallArgumentsDone(ResponseEvent, frozen=True, tag="response.function_call_arguments.done"):
    """The arguments of a function call."""

    item_id: str
    output_index: int
    name: str
    arguments: str


#: All events, for the documentation.
RESPONSE_EVENTS = (
    ResponseCreated,
    ResponseInProgress,
    OutputItemAdded,
    ContentPartAdded,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    CallArgumentsDelta,
    CallArgumentsDone,
    ContentPartDone,
    OutputItemDone,
    ResponseCompleted,
    ResponseIncomplete,
    ResponseFailed,
)


def encode_event(event: ResponseEvent, number: int) -> bytes:
    """Return the event with its number in wire format."""
    numbered = msgspec.structs.replace(event, sequence_number=number)
    return b"event: %b\ndata: %b\n\n" % (str(event.__struct_config__.tag).encode(), _encode(numbered))
