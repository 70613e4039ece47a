"""Log-probabilities of tokens, in the shapes of chats and of completions."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import msgspec

from wire.text import TokenLogprob


class TopLogprob(msgspec.Struct, frozen=True):
    """A token, its log-probability, and its UTF-8 bytes: a token may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob, frozen=True):
    """A generated token with the most probable ones at its place."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a choice of a chat."""

    content: list[ChatLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a choice of a completion: an entry of each list for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    #: Places of the tokens in the text, in characters; for a part of a character, the place of the character.
    text_offset: list[int]


class TokenOffsets:
    """Places of the tokens of one text, in characters, however these are cut into tokens."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._chars = 0

    def place(self, token: bytes) -> int:
        """Return the place of the next token."""
        before, self._chars = self._chars, self._chars + len(self._decoder.decode(token))
        return before


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    return ChatLogprobs([_chat_logprob(each) for each in tokens])


def _chat_logprob(each: TokenLogprob) -> ChatLogprob:
    top = [TopLogprob(_text(token), logprob, list(token)) for token, logprob in each.top]
    return ChatLogprob(_text(each.token), each.logprob, list(each.token), top)


def completion_logprobs(tokens: Sequence[TokenLogprob], offsets: TokenOffsets, alternatives: int) -> CompletionLogprobs:
    """Return those of the next tokens of a text. `offsets` has seen all tokens before."""
    texts = [_key(each.token) for each in tokens]
    places = [offsets.place(each.token) for each in tokens]
    top = [_alternatives(each) for each in tokens] if alternatives else None
    return CompletionLogprobs(texts, [each.logprob for each in tokens], top, places)


def _alternatives(each: TokenLogprob) -> dict[str, float]:
    """The most probable tokens, and the chosen one where it is none of them: OpenAI has it always."""
    return {_key(token): logprob for token, logprob in [*each.top, (each.token, each.logprob)]}


def _key(token: bytes) -> str:
    """Return the token's text; its bytes, as OpenAI writes them, for a part of a character: it is no other's key."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")
