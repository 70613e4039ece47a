"""Writes the texts of a chat: the complete response, or the events of a stream. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.generation.text.generated_texts import GeneratedTexts
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.text.chat_answer import ChatAnswer, ChatChoice, FinishReason, assistant_message
from loadbalancer.schema.text.chat_stream import ChatEvents
from loadbalancer.schema.text.logprobs import chat_logprobs
from loadbalancer.schema.text.pieces import merged, parsed_text


def chat_answer(texts: GeneratedTexts, id_: str, created: int) -> ChatAnswer:
    """Return the response of complete texts."""
    wants_logprobs = texts.alternatives is not None
    choices = [_choice(choice, id_, wants_logprobs=wants_logprobs) for choice in texts.choices]
    return ChatAnswer(id_, created, texts.model, choices, texts.usage)


def _choice(choice: TextChoice, id_: str, *, wants_logprobs: bool) -> ChatChoice:
    text = parsed_text(choice.take())
    logprobs = chat_logprobs(choice.take_logprobs()) if wants_logprobs else None
    message = assistant_message(text, _call_ids(choice, id_))
    return ChatChoice(choice.index, message, finish_reason(choice), logprobs, choice.stop_reason)


def finish_reason(choice: TextChoice) -> FinishReason:
    """Return why the text ended, as chats tell it: `tool_calls` if all its calls are complete."""
    has_calls = choice.calls and choice.finish == "stop" and not choice.is_in_call
    return "tool_calls" if has_calls else choice.finish or "stop"


def _call_ids(choice: TextChoice, id_: str) -> list[str]:
    """Return the ids of the tool calls so far. They follow from that of the response."""
    start = f"call_{id_.rpartition('-')[2][:24]}"
    return [f"{start}{choice.index:02x}{number:02x}" for number in range(choice.calls)]


class ChatWriter:
    """Implements `EventWriter`."""

    def __init__(self, events: ChatEvents, id_: str, *, wants_logprobs: bool) -> None:
        self._events = events
        self._id = id_
        self._wants_logprobs = wants_logprobs
        self._begun: set[int] = set()

    def news(self, texts: GeneratedTexts, choices: Sequence[TextChoice]) -> bytes:
        if len(choices) == 1:
            return self._news(texts, choices[0])
        return b"".join([self._news(texts, choice) for choice in choices])

    def _news(self, texts: GeneratedTexts, choice: TextChoice) -> bytes:
        events, index = self._events, choice.index
        has_more = bool(choice.finish) or self._wants_logprobs or events.continuous_usage
        if index in self._begun and choice.is_plain and not has_more:
            text, choice.text, choice.has_news = choice.text, "", False
            return events.content(index, text) if text else b""
        usage = texts.usage if events.continuous_usage else None
        first = b""
        if index not in self._begun:
            self._begun.add(index)
            first = events.begin(index, usage)
        pieces = merged(choice.take())
        parts = [first]
        if pieces or (choice.finish and choice.logprobs):
            logprobs = chat_logprobs(choice.take_logprobs()) if self._wants_logprobs else None
            parts.append(events.pieces(index, pieces, _call_ids(choice, self._id), logprobs, usage))
        if choice.finish:
            parts.append(events.finish(index, finish_reason(choice), choice.stop_reason, usage))
        return b"".join(parts)

    def end(self, texts: GeneratedTexts) -> bytes:
        return self._events.end(texts.usage)

    def failure(self, error: ApiError) -> bytes:
        return self._events.failure(error)
