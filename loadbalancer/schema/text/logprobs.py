"""Log-probabilities of tokens, in the shapes of chats and of completions."""

from __future__ import annotations

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
    #: Places of the tokens in the text, in characters.
    text_offset: list[int]


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    return ChatLogprobs([_chat_logprob(each) for each in tokens])


def _chat_logprob(each: TokenLogprob) -> ChatLogprob:
    top = [TopLogprob(_text(token), logprob, list(token)) for token, logprob in each.top]
    return ChatLogprob(_text(each.token), each.logprob, list(each.token), top)


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int, alternatives: int) -> CompletionLogprobs:
    """`offset` is the number of characters before the first token."""
    texts = [_text(each.token) for each in tokens]
    offsets: list[int] = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    top = [_alternatives(each) for each in tokens] if alternatives else None
    return CompletionLogprobs(texts, [each.logprob for each in tokens], top, offsets)


def _alternatives(each: TokenLogprob) -> dict[str, float]:
    """The most probable tokens, and the chosen one where it is none of them: OpenAI has it always."""
    return {_text(token): logprob for token, logprob in [*each.top, (each.token, each.logprob)]}


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")
