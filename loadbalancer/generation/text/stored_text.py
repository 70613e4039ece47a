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
from loadbalancer.schema.text.text_requests import CHAT_PATH, COMPLETION_PATH, RESPONSE_PATH
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
        self._record = record
        self.model = spec.model
        self.alternatives = next((each.logprobs for each in spec.inputs if isinstance(each, TextInputs)), None)
        self.choices = [restored_text(index, data) for index, data in enumerate(stored)]

    @property
    def usage(self) -> TextUsage:
        return usage_of(self.choices, (self._record.order.text or TextOptions()).choices)

    def answer(self) -> msgspec.Struct:
        """Return the response of the endpoint."""
        record, created = self._record, int(self._record.created)
        if record.order.path == CHAT_PATH:
            return chat_answer(self, _response_id(record), created)
        if record.order.path == COMPLETION_PATH:
            return completion_answer(self, _response_id(record), created)
        return _response_writer(record).answer(self)


def restored_text(index: int, data: bytes) -> TextChoice:
    """Return a stored text. Raises `msgspec.MsgspecError` for anything else."""
    choice = TextChoice(index)
    choice.restore(_decode(data))
    return choice


def job_writer(record: JobRecord) -> ChatWriter | CompletionWriter | ResponseWriter:
    """Return what writes the events of the endpoint's stream, with usage."""
    spec, created = record.order, int(record.created)
    alternatives = next((each.logprobs for each in spec.inputs if isinstance(each, TextInputs)), None)
    if spec.path == RESPONSE_PATH:
        return _response_writer(record)
    id_ = _response_id(record)
    if spec.path == CHAT_PATH:
        chat = ChatEvents(id_, created, spec.model, include_usage=True, continuous_usage=False)
        return ChatWriter(chat, id_, wants_logprobs=alternatives is not None)
    events = CompletionEvents(id_, created, spec.model, include_usage=True, continuous_usage=False)
    return CompletionWriter(events, alternatives=alternatives)


def _response_id(record: JobRecord) -> str:
    return f"{'chatcmpl' if record.order.path == CHAT_PATH else 'cmpl'}-{_digits(record)}"


def _digits(record: JobRecord) -> str:
    return record.id.rpartition("_")[2]


def _response_writer(record: JobRecord) -> ResponseWriter:
    options = record.order.text or TextOptions()
    echo = msgspec.json.decode(options.echo or b"{}", type=ResponseEcho)
    return ResponseWriter(_digits(record), int(record.created), record.order.model, echo)
