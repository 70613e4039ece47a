"""Divides a generated text into reasoning, content and tool calls, by the marks around them. Pure.

Any division of the text into parts gives the same result. A call that is malformed stays content, as far as its name
was not returned yet.
"""

from __future__ import annotations

import enum

from loadbalancer.generation.text.call_scanner import CallScanner, MalformedCall, ToolCallScanner
from loadbalancer.generation.text.named_call_scanner import NamedCallScanner
from loadbalancer.schema.text.pieces import TextPiece, merged
from wire.text import Markers, ToolCallFormat

#: Between calls.
_LIST = " \t\r\n,;[]"


class _Mode(enum.Enum):
    #: Only space so far.
    START = enum.auto()
    REASONING = enum.auto()
    #: Space after reasoning or a call, which is dropped.
    SPACE = enum.auto()
    CONTENT = enum.auto()
    #: Between calls, and in one.
    CALLS = enum.auto()


class OutputParser:
    """Implements `TextParser`."""

    def __init__(
        self, reasoning: Markers | None, tool_calls: ToolCallFormat | None, *, parallel_calls: bool = True
    ) -> None:
        """None: there is none of it. Without `parallel_calls`, only the first tool call is returned."""
        self._reasoning, self._calls = reasoning, tool_calls
        self._parallel_calls = parallel_calls
        self._mode = _Mode.START
        #: Reasoning has only space so far.
        self._is_blank = True
        #: Text that may be the beginning of a mark.
        self._buffer = ""
        self._scanner: ToolCallScanner | None = None
        self._number = 0
        #: What has been scanned since the last complete call, in case that it is none.
        self._raw = ""

    @property
    def is_reasoning(self) -> bool:
        return self._mode is _Mode.REASONING

    @property
    def is_in_call(self) -> bool:
        is_returned = self._parallel_calls or not self._number
        return is_returned and self._scanner is not None and self._scanner.is_in_arguments

    def feed(self, text: str) -> list[TextPiece]:
        """Return the pieces that are certain now."""
        self._buffer += text
        pieces: list[TextPiece] = []
        while self._buffer and self._advance(pieces):
            pass
        if len(pieces) > 1:  # arguments are scanned character by character
            pieces = merged(pieces)
        if self._parallel_calls:
            return pieces
        return [piece for piece in pieces if piece.kind not in ("call", "arguments") or not piece.call]

    def finish(self) -> list[TextPiece]:
        """Return what was held back. Nothing follows."""
        text, self._buffer = self._buffer, ""
        match self._mode:
            case _Mode.REASONING:
                text = text.rstrip()
                return [TextPiece("reasoning", text)] if text else []
            case _Mode.SPACE:
                return []
            case _Mode.CALLS if self._scanner is None or self._scanner.is_started:
                rest = text.strip(_LIST)
                return [TextPiece("content", rest)] if rest and self._scanner is None else []
            case _Mode.CALLS:
                text = self._raw + text
        return [TextPiece("content", text)] if text else []

    def _advance(self, pieces: list[TextPiece]) -> bool:
        """Go on in the buffer. Return False when the rest of it must wait for more."""
        match self._mode:
            case _Mode.START:
                return self._start(pieces)
            case _Mode.REASONING:
                return self._reason(pieces)
            case _Mode.SPACE:
                self._buffer = self._buffer.lstrip()
                if self._buffer:
                    self._mode = _Mode.CALLS if self._begins_bare_call(self._buffer) else _Mode.CONTENT
                return True
            case _Mode.CONTENT:
                return self._content(pieces)
            case _Mode.CALLS:
                return self._scan(pieces)

    def _start(self, pieces: list[TextPiece]) -> bool:
        text = self._buffer.lstrip()
        if not text:
            return False
        calls = self._calls
        if self._begins_bare_call(text):
            self._enter(_Mode.CALLS, text, self._buffer[: -len(text)])
            return True
        begins = ((self._reasoning, _Mode.REASONING), (calls, _Mode.CALLS))
        for markers, mode in begins:
            if markers is None or not markers.begin:
                continue
            if text.startswith(markers.begin):
                self._enter(mode, text[len(markers.begin) :], markers.begin)
                return True
            if markers.begin.startswith(text):
                return False
        self._mode = _Mode.CONTENT
        return self._content(pieces)

    def _begins_bare_call(self, text: str) -> bool:
        return self._calls is not None and self._calls.style == "bare" and text.startswith("{")

    def _enter(self, mode: _Mode, rest: str, before: str) -> None:
        self._mode, self._buffer, self._raw = mode, rest, before

    def _reason(self, pieces: list[TextPiece]) -> bool:
        assert self._reasoning is not None
        if self._is_blank:
            self._buffer = self._buffer.lstrip()
            self._is_blank = not self._buffer
        before, end, after = self._buffer.partition(self._reasoning.end)
        if end:
            self._leave(after)
            text = before.rstrip()
        else:
            certain = before[: len(before) - _held(before, [self._reasoning.end])].rstrip()
            text, self._buffer = certain, before[len(certain) :]
        if text:
            pieces.append(TextPiece("reasoning", text))
        return bool(end)

    def _content(self, pieces: list[TextPiece]) -> bool:
        text, markers = self._buffer, self._calls
        if markers is None or not markers.begin:
            self._buffer = ""
            pieces.append(TextPiece("content", text))
            return False
        before, begin, after = text.partition(markers.begin)
        if begin:
            self._enter(_Mode.CALLS, after, markers.begin)
        else:
            before = text[: len(text) - _held(text, [markers.begin])]
            self._buffer = text[len(before) :]
        if before:
            pieces.append(TextPiece("content", before))
        return bool(begin)

    def _scan(self, pieces: list[TextPiece]) -> bool:
        assert self._calls is not None
        text, end = self._buffer, self._calls.end
        for place, char in enumerate(text):
            scanner = self._scanner
            if scanner is None:
                rest = text[place:]
                if end and rest.startswith(end) and self._raw != self._calls.begin:
                    self._leave(rest[len(end) :])
                    return True
                if end and end.startswith(rest) and self._raw != self._calls.begin:
                    self._buffer = rest
                    return False
                if char in _LIST:
                    self._raw += char
                    continue
                scanner = self._new_scanner(self._calls)
            try:
                pieces += scanner.feed(char)
            except MalformedCall:
                self._reject(pieces, text[place:])
                return True
            self._scanner, self._raw = scanner, self._raw + char
            if scanner.is_done:
                self._scanner, self._raw, self._number = None, "", self._number + 1
                if self._calls.style == "named" and not end:
                    self._leave(text[place + 1 :])
                    return True
        self._buffer = ""
        return False

    def _new_scanner(self, form: ToolCallFormat) -> ToolCallScanner:
        if form.style == "named":
            return NamedCallScanner(self._number, form.before_id, form.before_arguments)
        return CallScanner(self._number, is_marked=form.style != "bare")

    def _leave(self, rest: str) -> None:
        self._mode, self._buffer, self._raw = _Mode.SPACE, rest, ""

    def _reject(self, pieces: list[TextPiece], rest: str) -> None:
        """What was scanned is no call: it is content, and so is the rest until the next mark."""
        if self._raw.strip(_LIST):
            pieces.append(TextPiece("content", self._raw))
        self._mode, self._buffer, self._raw, self._scanner = _Mode.CONTENT, rest, "", None


def _held(text: str, markers: list[str]) -> int:
    """Return the length of the longest end of the text that may be the beginning of a marker."""
    longest = min(max(map(len, markers)) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(each.startswith(text[-n:]) for each in markers)), 0)
