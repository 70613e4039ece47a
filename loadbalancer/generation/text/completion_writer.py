"""Writes the texts of a completion: the complete response, or the events of a stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.generation.text.generated_texts import GeneratedTexts
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.text.completion_answer import CompletionAnswer, CompletionChoice
from loadbalancer.schema.text.completion_stream import CompletionEvents
from loadbalancer.schema.text.logprobs import CompletionLogprobs, TokenOffsets, completion_logprobs


def completion_answer(texts: GeneratedTexts, id_: str, created: int) -> CompletionAnswer:
    """Return the response of complete texts."""
    alternatives = texts.alternatives
    choices = [
        CompletionChoice(
            choice.index,
            choice.take_text(),
            _logprobs(choice, TokenOffsets(), alternatives),
            choice.finish or "stop",
            choice.stop_reason,
        )
        for choice in texts.choices
    ]
    return CompletionAnswer(id_, created, texts.model, choices, texts.usage)


def _logprobs(choice: TextChoice, offsets: TokenOffsets, alternatives: int | None) -> CompletionLogprobs | None:
    return None if alternatives is None else completion_logprobs(choice.take_logprobs(), offsets, alternatives)


class CompletionWriter:
    """Implements `EventWriter`."""

    def __init__(self, events: CompletionEvents, *, alternatives: int | None) -> None:
        """`alternatives`: number of those with log-probabilities; None: no log-probabilities."""
        self._events = events
        self._alternatives = alternatives
        #: Of the tokens whose log-probabilities were sent, by choice.
        self._offsets: defaultdict[int, TokenOffsets] = defaultdict(TokenOffsets)

    def news(self, texts: GeneratedTexts, choices: Sequence[TextChoice]) -> bytes:
        if len(choices) == 1:
            return self._news(texts, choices[0])
        return b"".join([self._news(texts, choice) for choice in choices])

    def _news(self, texts: GeneratedTexts, choice: TextChoice) -> bytes:
        events, index = self._events, choice.index
        if not choice.finish and not choice.text:
            choice.take()  # a part of a character; its log-probabilities go with the rest
            return b""
        text = choice.take_text()
        if not choice.finish and self._alternatives is None and not events.continuous_usage:
            return events.text(index, text)
        usage = texts.usage if events.continuous_usage else None
        logprobs = _logprobs(choice, self._offsets[index], self._alternatives)
        reason = choice.finish or None
        return events.chunk(CompletionChoice(index, text, logprobs, reason, choice.stop_reason), usage)

    def end(self, texts: GeneratedTexts) -> bytes:
        return self._events.end(texts.usage)

    def failure(self, error: ApiError) -> bytes:
        return self._events.failure(error)
