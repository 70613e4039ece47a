"""The text of one choice while it is generated. Pure."""

from __future__ import annotations

from typing import Protocol

import msgspec

from loadbalancer.schema.text.pieces import TextPiece, merged
from wire.text import FinishReason, TokenLogprob, TokenOutput


class TextParser(Protocol):
    """Divides a text into its reasoning, its content and its tool calls."""

    @property
    def is_reasoning(self) -> bool:
        """The next text continues the reasoning."""

    @property
    def is_in_call(self) -> bool:
        """The arguments of a returned call are incomplete."""

    def feed(self, text: str) -> list[TextPiece]:
        """Return the pieces that are certain now."""

    def finish(self) -> list[TextPiece]:
        """Return what was held back. Nothing follows."""


class StoredText(msgspec.Struct, frozen=True, omit_defaults=True):
    """A complete text of a job. It is read by newer programs: fields may only be added, with defaults."""

    pieces: list[TextPiece]
    finish: FinishReason
    stop_reason: str | int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    reasoning_tokens: int = 0
    calls: int = 0
    logprobs: list[TokenLogprob] = []
    is_in_call: bool = False


class TextChoice:
    """Takes in the outputs of a task, and counts its tokens."""

    __slots__ = (
        "cached_tokens",
        "calls",
        "chars",
        "finish",
        "generated_tokens",
        "has_news",
        "index",
        "is_in_call",
        "logprobs",
        "parser",
        "pieces",
        "prompt_tokens",
        "reasoning_tokens",
        "stop_reason",
        "text",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        #: None: all of the text is content.
        self.parser: TextParser | None = None
        #: Content that has not been taken, without a parser; else the pieces.
        self.text = ""
        self.pieces: list[TextPiece] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason = ""
        self.stop_reason: str | int | None = None
        #: Characters of the text, of all kinds.
        self.chars = 0
        self.generated_tokens = self.prompt_tokens = self.cached_tokens = self.reasoning_tokens = 0
        #: Tool calls that have begun.
        self.calls = 0
        #: The text ended within the arguments of a call.
        self.is_in_call = False
        #: Something has come since it was last taken.
        self.has_news = False

    def add(self, output: TokenOutput) -> None:
        """Take in the output of a step."""
        self.has_news = True
        self.generated_tokens += len(output.tokens)
        self.chars += len(output.text)
        if output.prompt_tokens and not self.prompt_tokens:  # that of a further attempt is no news
            self.prompt_tokens, self.cached_tokens = output.prompt_tokens, output.cached_tokens
        if output.logprobs:
            self.logprobs += output.logprobs
        parser = self.parser
        if parser is None:
            self.text += output.text
        else:
            if parser.is_reasoning:
                self.reasoning_tokens += len(output.tokens)
            self._add_pieces(parser.feed(output.text))
        if output.finish:
            self.finish, self.stop_reason = output.finish, output.stop_reason
            if parser is not None:
                self.is_in_call = parser.is_in_call
                self._add_pieces(parser.finish())

    def _add_pieces(self, pieces: list[TextPiece]) -> None:
        self.pieces += pieces
        self.calls += sum(piece.kind == "call" for piece in pieces)

    @property
    def is_plain(self) -> bool:
        """All of the text is content."""
        return self.parser is None and not self.pieces

    def take(self) -> list[TextPiece]:
        """Remove and return what has come since the last time."""
        text = self.take_text()
        pieces, self.pieces = self.pieces, []
        return [*pieces, TextPiece("content", text)] if text else pieces

    def take_text(self) -> str:
        """Remove and return the text that has come since the last time, of a choice that `is_plain`."""
        self.has_news = False
        text, self.text = self.text, ""
        return text

    def restore(self, text: StoredText) -> None:
        """Take the complete text of a job, as if it had come just now."""
        self.has_news = True
        if len(text.pieces) == 1 and text.pieces[0].kind == "content":
            self.text = text.pieces[0].text
        else:
            self.pieces = text.pieces
        self.logprobs, self.calls = text.logprobs, text.calls
        self.finish, self.stop_reason, self.is_in_call = text.finish, text.stop_reason, text.is_in_call
        self.prompt_tokens, self.cached_tokens = text.prompt_tokens, text.cached_tokens
        self.generated_tokens, self.reasoning_tokens = text.generated_tokens, text.reasoning_tokens

    def pack(self) -> StoredText:
        """Remove and return the complete text."""
        return StoredText(
            merged(self.take()),
            self.finish,
            self.stop_reason,
            self.prompt_tokens,
            self.cached_tokens,
            self.generated_tokens,
            self.reasoning_tokens,
            self.calls,
            self.take_logprobs(),
            self.is_in_call,
        )

    def take_logprobs(self) -> list[TokenLogprob]:
        logprobs, self.logprobs = self.logprobs, []
        return logprobs
