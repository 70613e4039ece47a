"""Pieces of a generated text by what they are for the client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

#: `call` begins a tool call, and holds the name of its function; `arguments` are JSON.
PieceKind = Literal["content", "reasoning", "call", "arguments"]


class TextPiece(NamedTuple):
    """A part of a text. `call` is the index of the tool call that it belongs to."""

    kind: PieceKind
    text: str
    call: int = 0


class ParsedCall(NamedTuple):
    """A tool call of a text."""

    name: str
    arguments: str


class ParsedText(NamedTuple):
    """A complete text by what its parts are for the client."""

    content: str
    reasoning: str
    calls: list[ParsedCall]


def merged(pieces: Iterable[TextPiece]) -> list[TextPiece]:
    """Return the pieces, with neighbours of the same kind as one."""
    found: list[TextPiece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if last is not None and piece.kind == last.kind != "call" and piece.call == last.call:
            found[-1] = TextPiece(piece.kind, last.text + piece.text, piece.call)
        else:
            found.append(piece)
    return found


def parsed_text(pieces: Iterable[TextPiece]) -> ParsedText:
    """Return the complete text that these pieces are of."""
    texts: dict[str, list[str]] = {"content": [], "reasoning": []}
    names: list[str] = []
    arguments: list[list[str]] = []
    for kind, text, call in pieces:
        if kind == "call":
            names.append(text)
            arguments.append([])
        elif kind == "arguments":
            arguments[call].append(text)
        else:
            texts[kind].append(text)
    calls = [ParsedCall(name, "".join(parts)) for name, parts in zip(names, arguments, strict=True)]
    return ParsedText("".join(texts["content"]), "".join(texts["reasoning"]), calls)
