"""The events of a chat's stream. The usual chunk, one of content alone, is joined from parts that are made once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.stream_events import encode_error
from loadbalancer.schema.text.chat_answer import (
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    FinishReason,
    FunctionDelta,
    ToolCallDelta,
)
from loadbalancer.schema.text.logprobs import ChatLogprobs
from loadbalancer.schema.text.pieces import TextPiece
from loadbalancer.schema.text.usage import TextUsage

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode
#: In the place of the content of a usual chunk.
_PLACE = "\0content"


class ChatEvents:
    """Makes the chunks of one stream."""

    def __init__(self, id_: str, created: int, model: str, *, include_usage: bool, continuous_usage: bool) -> None:
        """`continuous_usage`: every chunk has the usage so far, which `include_usage` sends at the end."""
        self._id, self._created, self._model = id_, created, model
        self._include_usage = include_usage
        self.continuous_usage = continuous_usage and include_usage
        self._no_usage: UnsetType | None = None if include_usage else UNSET
        #: What is around the content of a chunk, by index of the choice.
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def begin(self, index: int, usage: TextUsage | None) -> bytes:
        """The first chunk of a choice."""
        return self._chunk(index, ChatDelta("assistant", ""), usage=usage)

    def content(self, index: int, text: str) -> bytes:
        """A chunk with content alone."""
        around = self._around.get(index)
        if around is None:
            usual = self._chunk(index, ChatDelta(content=_PLACE))
            before, _, after = usual.partition(_encode(_PLACE))
            self._around[index] = around = before, after
        return around[0] + _encode(text) + around[1]

    def pieces(
        self,
        index: int,
        pieces: Sequence[TextPiece],
        call_ids: Sequence[str],
        logprobs: ChatLogprobs | None,
        usage: TextUsage | None,
    ) -> bytes:
        """A chunk for each piece. The first has the log-probabilities of all."""
        deltas = [_delta(piece, call_ids) for piece in pieces] or [ChatDelta()]
        chunks = [
            self._chunk(index, delta, logprobs if not number else None, usage=usage)
            for number, delta in enumerate(deltas)
        ]
        return b"".join(chunks)

    def finish(self, index: int, reason: FinishReason, stop_reason: str | int | None, usage: TextUsage | None) -> bytes:
        """The last chunk of a choice."""
        stop = UNSET if stop_reason is None else stop_reason
        return self._chunk(index, ChatDelta(), None, reason, stop, usage)

    def end(self, usage: TextUsage) -> bytes:
        """The end of the stream."""
        if not self._include_usage:
            return DONE
        return _event(ChatChunk(self._id, self._created, self._model, [], usage)) + DONE

    def failure(self, error: ApiError) -> bytes:
        """The end of a stream that fails."""
        return encode_error(error) + DONE

    def _chunk(
        self,
        index: int,
        delta: ChatDelta,
        logprobs: ChatLogprobs | None = None,
        reason: FinishReason | None = None,
        stop_reason: str | int | UnsetType = UNSET,
        usage: TextUsage | None = None,
    ) -> bytes:
        choice = ChatChunkChoice(index, delta, logprobs, reason, stop_reason)
        known = self._no_usage if usage is None else usage
        return _event(ChatChunk(self._id, self._created, self._model, [choice], known))


def _event(chunk: ChatChunk) -> bytes:
    return b"data: %b\n\n" % _encode(chunk)


def _delta(piece: TextPiece, call_ids: Sequence[str]) -> ChatDelta:
    kind, text, call = piece
    if kind == "content":
        return ChatDelta(content=text)
    if kind == "reasoning":
        return ChatDelta(reasoning_content=text, reasoning=text)
    if kind == "call":
        function = FunctionDelta(text, "")
        return ChatDelta(tool_calls=[ToolCallDelta(call, call_ids[call], "function", function)])
    return ChatDelta(tool_calls=[ToolCallDelta(call, function=FunctionDelta(arguments=text))])
