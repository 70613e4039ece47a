"""The events of a completion's stream. The usual chunk, one of text alone, is joined from parts that are made once."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.stream_events import encode_error
from loadbalancer.schema.text.chat_stream import DONE
from loadbalancer.schema.text.completion_answer import CompletionAnswer, CompletionChoice
from loadbalancer.schema.text.usage import TextUsage

_encode = msgspec.json.Encoder().encode
#: In the place of the text of a usual chunk.
_PLACE = "\0text"


class CompletionEvents:
    """Makes the chunks of one stream."""

    def __init__(self, id_: str, created: int, model: str, *, include_usage: bool, continuous_usage: bool) -> None:
        """`continuous_usage`: every chunk has the usage so far, which `include_usage` sends at the end."""
        self._id, self._created, self._model = id_, created, model
        self._include_usage = include_usage
        self.continuous_usage = continuous_usage and include_usage
        self._no_usage: UnsetType | None = None if include_usage else UNSET
        #: What is around the text of a chunk, by index of the choice.
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def text(self, index: int, text: str) -> bytes:
        """A chunk with text alone."""
        around = self._around.get(index)
        if around is None:
            before, _, after = self.chunk(CompletionChoice(index, _PLACE), None).partition(_encode(_PLACE))
            self._around[index] = around = before, after
        return around[0] + _encode(text) + around[1]

    def chunk(self, choice: CompletionChoice, usage: TextUsage | None) -> bytes:
        known = self._no_usage if usage is None else usage
        return _event(CompletionAnswer(self._id, self._created, self._model, [choice], known))

    def end(self, usage: TextUsage) -> bytes:
        """The end of the stream."""
        if not self._include_usage:
            return DONE
        return _event(CompletionAnswer(self._id, self._created, self._model, [], usage)) + DONE

    def failure(self, error: ApiError) -> bytes:
        """The end of a stream that fails."""
        return encode_error(error) + DONE


def _event(chunk: CompletionAnswer) -> bytes:
    return b"data: %b\n\n" % _encode(chunk)
