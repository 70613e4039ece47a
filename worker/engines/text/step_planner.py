"""Decides which tokens a step computes, and which blocks of the cache rows get for them. Pure.

Rows go by age. A row whose cache lacks only its last token computes that one. The others compute a part of their text,
up to a number of tokens for all. When blocks run out, the youngest row loses its own and starts again later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from worker.engines.text.blocks import BlockManager, block_hash


class CachedText:
    """A row's tokens and what the cache has of them. Only `StepPlanner` changes anything but the tokens."""

    def __init__(self, tokens: Iterable[int], age: int) -> None:
        """`age` orders rows: a younger row has a higher number."""
        self.tokens = list(tokens)
        self.age = age
        self.blocks: list[int] = []
        #: Of the full blocks of `tokens`, as far as they were needed.
        self.hashes: list[bytes] = []
        #: Number of tokens in the cache, and the highest that it ever was.
        self.computed = self.highest = 0
        #: Tokens that were in the prefix cache when the row first started; None before that.
        self.cached: int | None = None

    @property
    def missing(self) -> int:
        """Number of tokens that are not in the cache."""
        return len(self.tokens) - self.computed


class Work(NamedTuple):
    """Tokens of a row that a step computes."""

    text: CachedText
    #: Number of tokens before them, all in the cache.
    start: int
    size: int
    #: True if the row's next token follows from this step.
    completes: bool

    @property
    def is_prefill(self) -> bool:
        """False for the last token of a row alone."""
        return self.size > 1 or not self.completes

    @property
    def tokens(self) -> Sequence[int]:
        return self.text.tokens[self.start : self.start + self.size]


class StepPlanner:
    """Owner of the blocks of all rows."""

    def __init__(self, blocks: int, block_tokens: int, step_tokens: int, *, prefix_cache: bool) -> None:
        """`step_tokens`: number of tokens of rows that are not complete in one step."""
        self.manager = BlockManager(blocks)
        self.blocks = blocks
        #: Sums: tokens of rows that started, those of them in the prefix cache, and tokens computed a second time
        #: because their blocks were taken.
        self.started = self.cached = self.recomputed = 0
        self._block_tokens = block_tokens
        self._step_tokens = step_tokens
        self._prefix_cache = prefix_cache
        #: Rows with blocks.
        self._holders: dict[CachedText, None] = {}

    def plan(self, texts: Sequence[CachedText]) -> list[Work]:
        """Return what to compute for which rows; at least the first of them gets something to do."""
        works: list[Work] = []
        budget, can_start = self._step_tokens, True
        for text in sorted(texts, key=lambda each: each.age):
            is_first = not works
            if not text.blocks:
                if not (can_start and budget) or (not is_first and self._is_in_progress(text)):
                    continue
                can_start = self._start(text, len(works), is_first)
            elif not self._reserve(text, text.computed + min(text.missing, max(budget, 1)), is_first):
                can_start = False
            if not text.blocks:
                continue
            count = 1 if text.missing == 1 else min(text.missing, budget)
            budget -= count if text.missing > 1 else 0
            if count:
                works.append(Work(text, text.computed, count, count == text.missing))
        return works

    def commit(self, works: Sequence[Work]) -> None:
        """Note that the tokens of these works are in the cache."""
        for text, start, size, _ in works:
            end = start + size
            self.recomputed += max(min(end, text.highest) - start, 0)
            text.computed, text.highest = end, max(end, text.highest)
            if self._prefix_cache:
                hashes = self._hashes(text, end // self._block_tokens)
                for number in range(start // self._block_tokens, end // self._block_tokens):
                    self.manager.register(text.blocks[number], hashes[number])

    def release(self, text: CachedText) -> None:
        """Take all blocks of the row."""
        self.manager.release(text.blocks)
        text.blocks, text.computed = [], 0
        self._holders.pop(text, None)

    def discard(self, text: CachedText) -> list[int]:
        """Take all blocks of the row and forget their content; return those that no other row holds."""
        blocks = text.blocks
        self.release(text)
        return self.manager.forget(blocks)

    def _start(self, text: CachedText, others: int, is_first: bool) -> bool:
        """Give the row blocks for all its tokens, and one to spare for each of the `others` that go before it."""
        hashes = self._hashes(text, (len(text.tokens) - 1) // self._block_tokens) if self._prefix_cache else []
        text.blocks = self.manager.acquire(hashes)
        needed = self._blocks_for(len(text.tokens)) - len(text.blocks)
        if not is_first and self.manager.free < needed + others:
            self.release(text)
            return False
        text.computed = len(text.blocks) * self._block_tokens
        self._holders[text] = None
        if not self._reserve(text, len(text.tokens), is_first):
            return False
        if text.cached is None:
            text.cached = text.computed
            self.started += len(text.tokens)
            self.cached += text.cached
        return True

    def _reserve(self, text: CachedText, tokens: int, is_first: bool) -> bool:
        """Give the row blocks for so many tokens. If there are none, the youngest loses its own, maybe this row."""
        needed = self._blocks_for(tokens) - len(text.blocks)
        while needed > self.manager.free:
            others = [each for each in self._holders if each is not text and (is_first or each.age > text.age)]
            self.release(max(others, key=lambda each: each.age, default=text))
            if text not in self._holders:
                return False
        if needed > 0:
            text.blocks += self.manager.allocate(needed) or []
        return True

    def _is_in_progress(self, text: CachedText) -> bool:
        """Return whether another row is about to compute the row's first block that the cache lacks."""
        if not self._prefix_cache:
            return False
        hashes = self._hashes(text, (len(text.tokens) - 1) // self._block_tokens)
        missing = next((number for number, each in enumerate(hashes) if not self.manager.knows(each)), None)
        if missing is None:
            return False
        return any(
            other.missing > 1
            and other.computed < (missing + 1) * self._block_tokens
            and self._has(other, missing, hashes[missing])
            for other in self._holders
        )

    def _has(self, other: CachedText, number: int, content: bytes) -> bool:
        hashes = self._hashes(other, len(other.tokens) // self._block_tokens)
        return number < len(hashes) and hashes[number] == content

    def _hashes(self, text: CachedText, number: int) -> list[bytes]:
        """Return the hashes of at least the first full blocks of the row, as many as asked for."""
        for block in range(len(text.hashes), number):
            tokens = text.tokens[block * self._block_tokens : (block + 1) * self._block_tokens]
            text.hashes.append(block_hash(text.hashes[-1] if text.hashes else b"", tokens))
        return text.hashes

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)
