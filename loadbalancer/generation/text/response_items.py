"""Builds the items of a response from the pieces of its text, and the events that tell of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from loadbalancer.generation.text.waiting_tokens import WaitingTokens
from loadbalancer.schema.text.logprobs import ChatLogprob, chat_logprobs
from loadbalancer.schema.text.pieces import TextPiece
from loadbalancer.schema.text.response_answer import (
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
)
from loadbalancer.schema.text.response_events import (
    CallArgumentsDelta,
    CallArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    ResponseEvent,
)
from wire.text import TokenLogprob


class ResponseItems:
    """The items so far. The last of them is open until another begins."""

    def __init__(self, id_: str) -> None:
        """`id_`: hexadecimal digits of the response's id, from which those of its items follow."""
        self._id = id_
        self.items: list[OutputItem] = []
        #: Texts of the open item.
        self._texts: list[str] = []
        self._is_open = False
        #: Log-probabilities of the open item, and those whose text has not come.
        self._logprobs: list[ChatLogprob] = []
        self._tokens = WaitingTokens()

    def add(self, pieces: Iterable[TextPiece], tokens: Iterable[TokenLogprob] = ()) -> list[ResponseEvent]:
        """Return the events of these pieces. `tokens`: with log-probabilities, where they were asked for."""
        self._tokens.add(tokens)
        events: list[ResponseEvent] = []
        for piece in pieces:
            if not self._continues(piece):
                events += [*self.finish("completed"), *self._begin(piece)]
            if piece.kind != "call":
                self._texts.append(piece.text)
                events.append(self._delta(piece.text, self._tokens.take(piece.text)))
        return events

    def finish(self, status: ItemStatus) -> list[ResponseEvent]:
        """Close the open item. Return its last events."""
        if not self._is_open:
            return []
        self._is_open = False
        item, index, text = self.items[-1], len(self.items) - 1, "".join(self._texts)
        events: list[ResponseEvent]
        part: OutputText | ReasoningText
        done: OutputItem
        if isinstance(item, FunctionCallItem):
            done = msgspec.structs.replace(item, arguments=text, status=status)
            events = [CallArgumentsDone(item_id=item.id, output_index=index, name=item.name, arguments=text)]
        elif isinstance(item, MessageItem):
            part = OutputText(text, logprobs=self._logprobs)
            done = msgspec.structs.replace(item, content=[part], status=status)
            events = [
                OutputTextDone(item_id=item.id, output_index=index, text=text, logprobs=self._logprobs),
                ContentPartDone(item_id=item.id, output_index=index, part=part),
            ]
        else:
            part = ReasoningText(text)
            done = msgspec.structs.replace(item, content=[part], status=status)
            events = [
                ReasoningTextDone(item_id=item.id, output_index=index, text=text),
                ContentPartDone(item_id=item.id, output_index=index, part=part),
            ]
        self.items[-1] = done
        return [*events, OutputItemDone(output_index=index, item=done)]

    def _continues(self, piece: TextPiece) -> bool:
        """Return whether the piece belongs to the open item."""
        if not self._is_open or piece.kind == "call":
            return False
        expected = {"content": MessageItem, "reasoning": ReasoningItem, "arguments": FunctionCallItem}[piece.kind]
        return isinstance(self.items[-1], expected)

    def _begin(self, piece: TextPiece) -> list[ResponseEvent]:
        index, digits = len(self.items), f"{self._id}{len(self.items):02x}"
        item: OutputItem
        part: OutputText | ReasoningText | None = None
        if piece.kind == "call":
            item = FunctionCallItem(f"fc_{digits}", f"call_{digits}", piece.text, "", "in_progress")
        elif piece.kind == "reasoning":
            item, part = ReasoningItem(f"rs_{digits}", "in_progress", []), ReasoningText("")
        else:
            item, part = MessageItem(f"msg_{digits}", "in_progress", []), OutputText("")
        self.items.append(item)
        self._texts, self._logprobs, self._is_open = [], [], True
        events: list[ResponseEvent] = [OutputItemAdded(output_index=index, item=item)]
        if part is not None:
            events.append(ContentPartAdded(item_id=item.id, output_index=index, part=part))
        return events

    def _delta(self, text: str, tokens: Sequence[TokenLogprob]) -> ResponseEvent:
        item, index = self.items[-1], len(self.items) - 1
        if isinstance(item, FunctionCallItem):
            return CallArgumentsDelta(item_id=item.id, output_index=index, delta=text)
        if isinstance(item, ReasoningItem):
            return ReasoningTextDelta(item_id=item.id, output_index=index, delta=text)
        logprobs = chat_logprobs(tokens).content
        self._logprobs += logprobs
        return OutputTextDelta(item_id=item.id, output_index=index, delta=text, logprobs=logprobs)
