"""Writes the text of a response: the complete one, or the events of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.generation.text.generated_texts import GeneratedTexts
from loadbalancer.generation.text.response_items import ResponseItems
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.text.pieces import merged
from loadbalancer.schema.text.response_answer import (
    IncompleteDetails,
    ResponseAnswer,
    ResponseEcho,
    ResponseFailure,
    response_usage,
)
from loadbalancer.schema.text.response_events import (
    ResponseCompleted,
    ResponseCreated,
    ResponseEvent,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    encode_event,
)


def _status(choice: TextChoice) -> Literal["completed", "incomplete"]:
    """Return the status of a response: a stop text completes it, as the end of a text does."""
    return "incomplete" if choice.finish == "length" else "completed"


class ResponseWriter:
    """Implements `EventWriter`; `answer` makes the complete response instead."""

    def __init__(self, digits: str, created: int, model: str, echo: ResponseEcho) -> None:
        """`digits`: hexadecimal digits of the response's id."""
        self._items = ResponseItems(digits)
        self._events = 0
        echoed = {name: getattr(echo, name) for name in echo.__struct_fields__}
        self._begun = ResponseAnswer(
            **echoed, id=f"resp_{digits}", created_at=created, model=model, status="in_progress", output=[]
        )

    def answer(self, texts: GeneratedTexts) -> ResponseAnswer:
        """Return the response of a complete text."""
        self._add(texts.choices[0])
        self._finish_items(texts.choices[0])
        return self._end(texts)

    def news(self, texts: GeneratedTexts, choices: Sequence[TextChoice]) -> bytes:
        del texts
        begin: list[ResponseEvent] = []
        if not self._events:
            begin = [ResponseCreated(response=self._begun), ResponseInProgress(response=self._begun)]
        return self._encode([*begin, *self._add(choices[0])])

    def end(self, texts: GeneratedTexts) -> bytes:
        closing = self._finish_items(texts.choices[0])
        answer = self._end(texts)
        kind = ResponseCompleted if answer.status == "completed" else ResponseIncomplete
        last = kind(response=answer)
        return self._encode([*closing, last])

    def failure(self, error: ApiError) -> bytes:
        closing = self._items.finish("incomplete")
        failed = msgspec.structs.replace(
            self._begun,
            status="failed",
            output=self._items.items,
            error=ResponseFailure(error.code or error.type, error.message),
        )
        return self._encode([*closing, ResponseFailed(response=failed)])

    def _add(self, choice: TextChoice) -> list[ResponseEvent]:
        return self._items.add(merged(choice.take()), choice.take_logprobs())

    def _finish_items(self, choice: TextChoice) -> list[ResponseEvent]:
        """Close the last item. A call whose arguments are cut, by a stop text too, is no complete item."""
        return self._items.finish("incomplete" if choice.is_in_call else _status(choice))

    def _end(self, texts: GeneratedTexts) -> ResponseAnswer:
        status = _status(texts.choices[0])
        return msgspec.structs.replace(
            self._begun,
            status=status,
            output=self._items.items,
            usage=response_usage(texts.usage),
            incomplete_details=IncompleteDetails("max_output_tokens") if status == "incomplete" else None,
        )

    def _encode(self, events: Iterable[ResponseEvent]) -> bytes:
        parts = []
        for event in events:
            parts.append(encode_event(event, self._events))
            self._events += 1
        return b"".join(parts)
