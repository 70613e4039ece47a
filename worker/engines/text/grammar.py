"""Structured output: which tokens may come next, by llguidance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from worker.engine import TaskError

#: Bound the time and memory of a grammar, for one compilation and for one token.
_LIMITS = LLParserLimits(
    max_items_in_row=10_000,  # an object of 512 optional properties has four for each
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
#: A forced part of a text is one that nothing else can stand in the place of. llguidance turns it into tokens by the
#: tokenizer and allows these alone.
_FORCING, _NOT_FORCING = "%llguidance {}\n", '%llguidance {"no_forcing": true}\n'


class Grammars:
    """Compiles the grammars of texts with the tokens of one model."""

    def __init__(
        self, tokenizer: Tokenizer, vocabulary: int, eos_ids: Collection[int], added: Mapping[int, str]
    ) -> None:
        """Takes up to a second for a large vocabulary. Raises `ValueError` for a tokenizer that it does not support.

        `added`: texts of the tokens that are not the model's own.
        """
        if not eos_ids:
            raise ValueError("the model has no end token")
        self._tokenizer = LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=sorted(eos_ids))
        self._special = {text: token for token, text in added.items() if self._tokenizer.is_special_token(token)}

    def special_id(self, text: str) -> int | None:
        """Return the id of a token that a grammar names by its id, since no text matches it."""
        return self._special.get(text)

    def compile(self, lark: str, *, is_free: bool) -> Grammar:
        """Return the grammar of one text, at its begin. `lark`: its rules. Raises `ValueError` for an error in them."""
        matcher = self._matcher(_FORCING + lark)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        special = frozenset(self._special.values())
        return Grammar(matcher, special, lambda: self._matcher(_NOT_FORCING + lark), is_free=is_free)

    def _matcher(self, lark: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0, limits=_LIMITS)


class Grammar:
    """What one text must match, and where in it the text is."""

    def __init__(
        self, matcher: LLMatcher, special: Collection[int], make_unforced: Callable[[], LLMatcher], *, is_free: bool
    ) -> None:
        """`special`: tokens that no text matches. `make_unforced` makes a matcher of the same grammar, at its begin."""
        self._matcher, self._special, self._make_unforced = matcher, special, make_unforced
        self._tokens: list[int] = []
        #: True for a free text whose tool calls must match.
        self.is_free = is_free

    @property
    def is_complete(self) -> bool:
        """True if the text matches, and nothing can follow."""
        return self._matcher.is_stopped()

    def fill_mask(self, bitmask: Any, row: int) -> None:
        """Set the bits of the tokens that may come next in a row of `bitmask`, and clear all others.

        `bitmask`: int32 tensor on the CPU of shape [rows, words], 32 tokens in a word, the lowest bit first. It may
        have room for more tokens than the tokenizer has.
        """
        allowed = np.frombuffer(self._matcher.compute_bitmask(), np.int32)
        only = _only_token(allowed)
        if only in self._special and not self._matcher.validate_tokens([only]):
            # The text has to contain the text of this token, as one of an enum may, and its tokenizer knows only one.
            self._matcher = self._make_unforced()
            self._matcher.consume_tokens(self._tokens)
            allowed = np.frombuffer(self._matcher.compute_bitmask(), np.int32)
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar became too complex: {self._matcher.get_error()}")
        words = np.asarray(bitmask[row])
        count = min(len(words), len(allowed))
        words[:count], words[count:] = allowed[:count], 0

    def accept(self, token: int) -> None:
        """Take in the next token. Raises `TaskError` for one that may not come."""
        if not self._matcher.consume_token(token):
            problem = self._matcher.get_error().splitlines() or ["unknown"]
            raise TaskError("error", f"the text left its grammar: {problem[0]}")
        self._tokens.append(token)


def _only_token(bitmask: Any) -> int:
    """Return the one token that is allowed; -1 if there are others, or none."""
    words: Sequence[int] = np.flatnonzero(bitmask).tolist()
    if len(words) != 1:
        return -1
    word = int(bitmask[words[0]]) & 0xFFFFFFFF
    return -1 if word & (word - 1) else 32 * words[0] + word.bit_length() - 1
