"""Finds which tokens a part of a text was made of, among those that have come. Pure."""

from __future__ import annotations

import codecs
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from wire.text import TokenLogprob

#: Tokens that stay after a text that is not found: a stop text of so many characters may be held back.
_MAX_WAITING = 1000


class WaitingTokens:
    """Tokens whose text was not taken yet."""

    def __init__(self) -> None:
        self._tokens: list[TokenLogprob] = []
        #: Text of the last taken token that was not a part of the text.
        self._rest = ""

    def add(self, tokens: Iterable[TokenLogprob]) -> None:
        self._tokens += tokens

    def take(self, text: str) -> Sequence[TokenLogprob]:
        """Remove the tokens up to the end of the first such text, and return those that begin in it.

        Tokens before it are marks, or space that nobody gets. Tokens without a text may be among its own. A text that
        is not found takes none.
        """
        if not text or not (self._tokens or self._rest):
            return ()
        rest, self._rest = self._rest, ""
        if rest.startswith(text):
            self._rest = rest[len(text) :]
            return ()
        wanted, texts = text.removeprefix(rest), _texts(self._tokens)
        found, self._rest = _adjacent(texts, wanted) or _scattered(texts, wanted) or ((), "")
        if not found:
            del self._tokens[:-_MAX_WAITING]
            return ()
        tokens, self._tokens = self._tokens, self._tokens[found[-1] + 1 :]
        return [tokens[number] for number in found]


def _texts(tokens: Sequence[TokenLogprob]) -> list[str]:
    """Return the text of each token. That of a character is with its last token, and U+FFFD stands for half ones."""
    decoder, last = codecs.getincrementaldecoder("utf-8")("replace"), len(tokens) - 1
    return [decoder.decode(each.token, final=number == last) for number, each in enumerate(tokens)]


def _adjacent(texts: Sequence[str], wanted: str) -> tuple[Sequence[int], str] | None:
    """Return the places of the adjacent tokens with this text, and what is left of the last. None: there are none.

    The text may begin within the first, if it begins with none: a mark may have it in itself.
    """
    joined, ends = "".join(texts), list(accumulate(map(len, texts)))
    begins = {0, *ends}
    start = next((place for place in _places(joined, wanted) if place in begins), joined.find(wanted))
    if start < 0:
        return None
    end = start + len(wanted)
    first, last = bisect_right(ends, start), bisect_left(ends, end)
    while first and not texts[first - 1]:  # parts of the first character
        first -= 1
    return range(first, last + 1), joined[end : ends[last]]


def _places(text: str, part: str) -> Iterator[int]:
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + 1)


def _scattered(texts: Sequence[str], wanted: str) -> tuple[Sequence[int], str] | None:
    """Return the same for tokens that have others between them."""
    found, place = [], 0
    for number, text in enumerate(texts):
        if text.startswith(wanted[place : place + len(text)]):
            found.append(number)
            place += len(text)
            if place >= len(wanted):
                return found, text[len(text) - (place - len(wanted)) :]
    return None
