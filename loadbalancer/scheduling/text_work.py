"""The work of a language model's tasks: what a prompt costs, and how many tokens to expect. Pure.

A step generates one token for each text of the batch. The steps that a prompt takes are those that would fit into the
time of computing it: few where the text runs alone, and more in a full batch, whose steps serve many texts at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from cachetools import LRUCache

from wire.text import TextCounters

#: Lengths of the latest results that count.
_MODEL_LENGTHS = 512
_OWNER_LENGTHS = 64
_MAX_OWNERS = 1000
#: The model's mean counts as much as so many results of the owner.
_PRIOR_RESULTS = 8
#: Expected tokens before the first result.
_UNKNOWN_TOKENS = 128
#: Bytes of a prompt per token before the first one was counted, and the weight of the newest prompt.
_BYTES_PER_TOKEN = 4.0
_NEWEST_WEIGHT = 0.05
_MAX_STEPS = 2**24


class PromptSteps(NamedTuple):
    """The steps that computing a prompt takes the place of."""

    #: Of a text that runs alone.
    single: int = 0
    #: Of a text in a full batch.
    in_full_batch: int = 0


NO_PROMPT = PromptSteps()


class TextWork:
    """What was learnt from one model's prompts and results."""

    def __init__(self) -> None:
        #: Seconds of a worker per prompt token; 0 until it was measured.
        self.prompt_token_s = 0.0
        self._bytes_per_token = _BYTES_PER_TOKEN
        self._lengths: deque[int] = deque(maxlen=_MODEL_LENGTHS)
        self._of_owner: LRUCache[str, deque[int]] = LRUCache(_MAX_OWNERS)

    def __repr__(self) -> str:
        return f"<TextWork {self.prompt_token_s:.2g} s per prompt token, {len(self._lengths)} results>"

    # ---- measurements

    def update(self, counters: Iterable[TextCounters]) -> None:
        """Read the workers' sums. The last rate stays valid while no worker is connected."""
        tokens, seconds = 0, 0.0
        for each in counters:
            tokens += max(each.prompt_tokens - each.cached_tokens, 0) + each.recomputed_tokens
            seconds += each.prefill_s
        if tokens and seconds:
            self.prompt_token_s = seconds / tokens

    def on_prompt(self, size: int, tokens: int) -> None:
        """Note that a prompt of so many bytes has so many tokens."""
        if size and tokens:
            self._bytes_per_token += _NEWEST_WEIGHT * (size / tokens - self._bytes_per_token)

    def on_result(self, owner: str, tokens: int) -> None:
        """Note the length of a complete result."""
        self._lengths.append(tokens)
        own = self._of_owner.get(owner)
        if own is None:
            own = self._of_owner[owner] = deque(maxlen=_OWNER_LENGTHS)
        own.append(tokens)

    # ---- estimates

    def prompt_tokens(self, size: int) -> int:
        """Return the expected number of tokens of a prompt of so many bytes."""
        return max(round(size / self._bytes_per_token), 1)

    def prompt_steps(self, tokens: int, *, single_s: float, full_batch_s: float) -> PromptSteps:
        """Return the steps of computing so many tokens; none while it was not measured.

        `single_s`: seconds of a step of one text. `full_batch_s`: seconds per text of a step of a full batch.
        """
        seconds = tokens * self.prompt_token_s
        if not seconds or single_s <= 0 or full_batch_s <= 0:
            return NO_PROMPT
        return PromptSteps(*(min(round(seconds / step_s), _MAX_STEPS) for step_s in (single_s, full_batch_s)))

    def expected_tokens(self, owner: str, max_tokens: int) -> int:
        """Return the mean length of results of this owner, where none is longer than `max_tokens`.

        An owner with few results is expected to be like the others.
        """
        if not self._lengths:
            return min(max_tokens, _UNKNOWN_TOKENS)
        mean = _truncated_mean(self._lengths, max_tokens)
        own = self._of_owner.get(owner)
        if own:
            mean = (_PRIOR_RESULTS * mean + len(own) * _truncated_mean(own, max_tokens)) / (_PRIOR_RESULTS + len(own))
        return min(max(round(mean), 1), max_tokens)


def _truncated_mean(lengths: deque[int], bound: int) -> float:
    return sum(min(length, bound) for length in lengths) / len(lengths)
