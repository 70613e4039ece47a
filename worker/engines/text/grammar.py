"""Structured output: which tokens may come next, by llguidance."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
        """Return the grammar of one text, at its begin. Raises `ValueError` for a grammar with an error."""
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return Grammar(matcher, is_free=is_free)


class Grammar:
    """What one text must match, and where in it the text is."""

    def __init__(self, matcher: LLMatcher, *, is_free: bool) -> None:
        self._matcher = matcher
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
