"""Scans a tool call with its name before its arguments, `name{...}`, character by character. Pure."""

from __future__ import annotations

import re

from loadbalancer.generation.text.call_scanner import MalformedCall
from loadbalancer.schema.text.pieces import TextPiece

#: The name of a function is shorter, with the marks around an id.
_MAX_HEAD_CHARS = 512
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class NamedCallScanner:
    """Implements `ToolCallScanner` for a name and an object of arguments after it."""

    def __init__(self, index: int, before_id: str, before_arguments: str) -> None:
        """The texts may stand before an id of the call, and before the arguments; empty: there is none."""
        self._index, self._before_id, self._before_arguments = index, before_id, before_arguments
        self._head = ""
        self._depth = 0
        self._in_string = self._is_escaped = False
        self.is_started = self.is_done = False

    @property
    def is_in_arguments(self) -> bool:
        return self.is_started and not self.is_done

    def feed(self, char: str) -> list[TextPiece]:
        if not self.is_started:
            if char != "{":
                self._head += char
                if len(self._head) > _MAX_HEAD_CHARS:
                    raise MalformedCall
                return []
            self.is_started, self._depth = True, 1
            return [TextPiece("call", self._name(), self._index), TextPiece("arguments", char, self._index)]
        self._follow(char)
        self.is_done = not self._depth
        return [TextPiece("arguments", char, self._index)]

    def _name(self) -> str:
        head = self._head
        if self._before_arguments:
            head = head.strip().removesuffix(self._before_arguments)
        if self._before_id:
            head = head.partition(self._before_id)[0]
        name = head.strip()
        if not _NAME.fullmatch(name):
            self.is_started = False
            raise MalformedCall
        return name

    def _follow(self, char: str) -> None:
        """Count the open brackets outside of strings."""
        if self._is_escaped:
            self._is_escaped = False
        elif self._in_string:
            self._is_escaped = char == "\\"
            self._in_string = char != '"'
        else:
            self._in_string = char == '"'
            self._depth += (char in "{[") - (char in "}]")
