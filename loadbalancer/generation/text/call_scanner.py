"""Scans a tool call, `{"name": ..., "arguments": {...}}`, character by character. Pure."""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec

from loadbalancer.schema.text.pieces import TextPiece

#: Names of the member that holds the arguments.
_ARGUMENTS = ("arguments", "parameters")
_SPACE = " \t\r\n"
#: Members of a call that no mark precedes. Any other object is content.
_CALL_KEYS = ("name", *_ARGUMENTS, "type", "id")


class MalformedCall(Exception):
    """The text is no call. Nothing of it was returned."""


class ToolCallScanner(Protocol):
    """Scans one call. Its arguments are returned as they come, once its name is known."""

    @property
    def is_started(self) -> bool:
        """The name was returned, so that this is a call whatever follows."""

    @property
    def is_in_arguments(self) -> bool:
        """The arguments were returned in part: they are no JSON yet."""

    @property
    def is_done(self) -> bool:
        """The call is complete."""

    def feed(self, char: str) -> list[TextPiece]:
        """Take in the next character. Raises `MalformedCall`, once `is_started` never."""


class _State(enum.Enum):
    OBJECT = enum.auto()
    KEY = enum.auto()
    IN_KEY = enum.auto()
    COLON = enum.auto()
    VALUE = enum.auto()
    IN_VALUE = enum.auto()
    AFTER_VALUE = enum.auto()
    DONE = enum.auto()


_FOLLOWING = {
    (_State.OBJECT, "{"): _State.KEY,
    (_State.KEY, '"'): _State.IN_KEY,
    (_State.COLON, ":"): _State.VALUE,
    (_State.AFTER_VALUE, ","): _State.KEY,
}


class CallScanner:
    """Implements `ToolCallScanner` for an object with the name and the arguments."""

    def __init__(self, index: int, *, is_marked: bool = True) -> None:
        """`index` is that of the call in the text. `is_marked`: a mark before it says that it is a call.

        Without, it must have arguments, and no members that no call has.
        """
        self._index, self._is_marked = index, is_marked
        self._state = _State.OBJECT
        self._key = self._name = ""
        #: Characters of the key or of a value that is needed as a whole.
        self._token = ""
        self._depth = 0
        self._in_string = self._is_escaped = False
        #: Arguments that wait for the name.
        self._waiting = ""
        #: The value is an object of arguments, whose characters are passed on.
        self._passes = False
        self._has_arguments = False
        self.is_started = False

    @property
    def is_in_arguments(self) -> bool:
        return self.is_started and self._passes

    @property
    def is_done(self) -> bool:
        return self._state is _State.DONE

    def feed(self, char: str) -> list[TextPiece]:
        if self._state is _State.IN_VALUE:
            return self._in_value(char)
        if self._state is _State.IN_KEY:
            self._in_key(char)
        elif char not in _SPACE:
            return self._on_structure(char)
        return []

    def _on_structure(self, char: str) -> list[TextPiece]:
        """Take in a character between keys and values."""
        if self._state is _State.VALUE:
            return self._begin_value(char)
        if char == "}" and self._state in (_State.KEY, _State.AFTER_VALUE):
            return self._end()
        following = _FOLLOWING.get((self._state, char))
        if following is not None:
            self._state, self._token = following, char
        elif not self.is_started:  # else what stands between the rest of its members does not matter
            raise MalformedCall
        return []

    def _in_key(self, char: str) -> None:
        self._token += char
        if self._ends_string(char):
            self._key, self._state = self._decoded(), _State.COLON
            if not self._is_marked and not self.is_started and self._key not in _CALL_KEYS:
                raise MalformedCall

    def _begin_value(self, char: str) -> list[TextPiece]:
        self._state, self._token, self._depth = _State.IN_VALUE, "", 0
        self._passes = self._key in _ARGUMENTS and char == "{" and not self._has_arguments
        pieces = self._begin() if self._passes and self._name else []
        return [*pieces, *self._in_value(char, is_first=True)]

    def _in_value(self, char: str, *, is_first: bool = False) -> list[TextPiece]:
        if self._in_string:
            ends = self._ends_string(char) and not self._depth
        elif not is_first and not self._depth and (char in ",}]" or char in _SPACE):  # after a number or a word
            return [*self._end_value(), *self.feed(char)]
        else:
            self._in_string = char == '"'
            self._depth += (char in "{[") - (char in "}]")
            ends = char in "}]" and self._depth <= 0
        if self._passes:
            pieces = self._pass(char)
        else:
            self._token += char
            pieces = []
        return [*pieces, *self._end_value()] if ends else pieces

    def _ends_string(self, char: str) -> bool:
        """Return whether the string ends with this character."""
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._in_string = False
            return True
        return False

    def _pass(self, char: str) -> list[TextPiece]:
        if self.is_started:
            return [TextPiece("arguments", char, self._index)]
        self._waiting += char
        return []

    def _end_value(self) -> list[TextPiece]:
        self._state = _State.AFTER_VALUE
        if self._passes:
            self._passes, self._has_arguments = False, True
        elif self._key == "name" and not self._name:
            self._name = self._decoded()
            if not self._name:
                raise MalformedCall
            if self._has_arguments:
                return self._begin()
        elif self._key in _ARGUMENTS and not self._has_arguments:
            self._has_arguments = True
            self._waiting = self._decoded() if self._token.startswith('"') else "{}"
            if self._name:
                return self._begin()
        return []

    def _begin(self) -> list[TextPiece]:
        self.is_started = True
        waiting, self._waiting = self._waiting, ""
        begin = TextPiece("call", self._name, self._index)
        return [begin, TextPiece("arguments", waiting, self._index)] if waiting else [begin]

    def _end(self) -> list[TextPiece]:
        if not self._name or not (self._is_marked or self._has_arguments):
            raise MalformedCall
        self._state = _State.DONE
        if self.is_started:
            return []
        self._waiting = self._waiting or "{}"
        return self._begin()

    def _decoded(self) -> str:
        """The string that was scanned. Raises `MalformedCall` if it is none."""
        try:
            return msgspec.json.decode(self._token, type=str)
        except (msgspec.MsgspecError, UnicodeError):
            if self.is_started:
                return ""
            raise MalformedCall from None
