"""The texts of jobs: how they are stored, and the responses that are made of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadbalancer.generation.text.chat_writer import ChatWriter, chat_answer
from loadbalancer.generation.text.choice import StoredText, TextChoice
from loadbalancer.generation.text.completion_writer import CompletionWriter, completion_answer
from loadbalancer.generation.text.generated_texts import usage_of
from loadbalancer.generation.text.response_writer import ResponseWriter
from loadbalancer.schema.text.chat_stream import ChatEvents
from loadbalancer.schema.text.completion_stream import CompletionEvents
from loadbalancer.schema.text.response_answer import ResponseEcho
from loadbalancer.schema.text.text_requests import CHAT_PATH, COMPLETION_PATH
from loadbalancer.schema.text.usage import TextUsage
from loadbalancer.storage.records import JobRecord, TextOptions
from wire.inputs import TextInputs

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StoredText).decode


def pack_text(choice: TextChoice) -> bytes:
    """Return the complete text as it is stored."""
    return _encode(choice.pack())


class StoredTexts:
    """Implements `GeneratedTexts` for a job that has ended."""

    def __init__(self, record: JobRecord, stored: Sequence[bytes]) -> None:
        """`stored` are the texts of all choices. Raises `msgspec.MsgspecError` for others."""
        spec = record.order
        self._options = spec.text or TextOptions()
        self._path, self._digits = spec.path, record.id.rpartition("_")[2]
        self._created = int(record.ended or record.created)
        self._inputs = [each for each in spec.inputs if isinstance(each, TextInputs)]
        self.model = spec.model
        self.alternatives = self._inputs[0].logprobs
        self.choices = [_choice(index, _decode(data)) for index, data in enumerate(stored)]

    @property
    def usage(self) -> TextUsage:
        return usage_of(self.choices, self._options.choices)

    def answer(self) -> msgspec.Struct:
        """Return the response of the endpoint."""
        if self._path == CHAT_PATH:
            return chat_answer(self, self._id, self._created)
        if self._path == COMPLETION_PATH:
            return completion_answer(self, self._id, self._created)
        return self._response_writer().answer(self)

    def events(self) -> bytes:
        """Return the events of the endpoint's stream, each text in one piece."""
        writer = self._writer()
        return writer.news(self, self.choices) + writer.end(self)

    @property
    def _id(self) -> str:
        return f"{'chatcmpl' if self._path == CHAT_PATH else 'cmpl'}-{self._digits}"

    def _writer(self) -> ChatWriter | CompletionWriter | ResponseWriter:
        if self._path == CHAT_PATH:
            chat = ChatEvents(self._id, self._created, self.model, include_usage=True, continuous_usage=False)
            return ChatWriter(chat, self._id, wants_logprobs=self.alternatives is not None)
        if self._path == COMPLETION_PATH:
            events = CompletionEvents(self._id, self._created, self.model, include_usage=True, continuous_usage=False)
            return CompletionWriter(events, alternatives=self.alternatives)
        return self._response_writer()

    def _response_writer(self) -> ResponseWriter:
        echo = msgspec.json.decode(self._options.echo or b"{}", type=ResponseEcho)
        return ResponseWriter(self._digits, self._created, self.model, echo)


def _choice(index: int, stored: StoredText) -> TextChoice:
    choice = TextChoice(index)
    choice.restore(stored)
    return choice
