"""Chooses the tokens in vLLM's batch, as in the engine `text`: by a text's seed and the position alone.

vLLM's own sampler starts again with a text that moves, and knows neither its earlier tokens nor where its grammar is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from worker.engines.text.sampling import Choice, SampledRow, TokenCounts, choose, needs_counts
from worker.engines.text_library.interface import LibraryRequest

#: Logits whose highest and lowest value are closer tell no tokens apart.
_MIN_SPREAD = 1e-4


class TokenChooser:
    """The requests in vLLM's batch by their place in it, and the token of each."""

    def __init__(self) -> None:
        self._requests: dict[str, LibraryRequest] = {}
        self._counts: dict[str, TokenCounts] = {}
        self._batch: dict[int, str] = {}
        #: The newest choices, by the name of the request.
        self._choices: dict[str, Choice] = {}
        #: Smallest difference between the highest and lowest logit of a row in the last step.
        self._spread = math.inf

    @property
    def is_uniform(self) -> bool:
        """True if the last logits of a row were all equal, or were no numbers."""
        return not self._spread > _MIN_SPREAD

    def add(self, request: LibraryRequest) -> None:
        self._requests[request.name] = request

    def remove(self, name: str) -> None:
        for each in (self._requests, self._counts, self._choices):
            each.pop(name, None)

    def request(self, name: str) -> LibraryRequest:
        return self._requests[name]

    def take(self, name: str) -> Choice:
        """Remove and return the choice for a request."""
        return self._choices.pop(name)

    def update_batch(
        self, removed: Sequence[int], added: Sequence[tuple[int, str]], moved: Sequence[tuple[int, int, bool]]
    ) -> None:
        """Follow the changes of vLLM's batch: places that became free, new requests, and moves from place to place.

        The third value of a move is true for a swap.
        """
        for place in removed:
            self._batch.pop(place, None)
        for place, name in added:
            self._batch[place] = name
        for source, target, is_swap in moved:
            first, second = self._batch.pop(source, None), self._batch.pop(target, None)
            if first is not None:
                self._batch[target] = first
            if second is not None and is_swap:
                self._batch[source] = second

    def force_choices(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose a token for each row of float32 logits of shape [requests, vocabulary], and make it the highest."""
        if not self._batch:  # vLLM tries out its memory
            return logits
        if logits.shape[0] != len(self._batch):
            raise RuntimeError(f"vLLM has logits for {logits.shape[0]} texts, and {len(self._batch)} in its batch")
        names = [self._batch[place] for place in range(len(self._batch))]
        choices = choose(logits, [self._sampled(name, logits) for name in names])
        self._spread = float((logits.amax(-1) - logits.amin(-1)).min()) if math.isinf(self._spread) else self._spread
        self._choices.update(zip(names, choices, strict=True))
        places = torch.arange(len(names), device=logits.device)
        logits[places, torch.tensor([each.token for each in choices], device=logits.device)] = math.inf
        return logits

    def _sampled(self, name: str, logits: torch.Tensor) -> SampledRow:
        request = self._requests[name]
        sampling, generation = request.inputs.sampling, request.generation
        counts = self._counts.get(name)
        if counts is None and needs_counts(sampling):
            counts = self._counts[name] = TokenCounts(generation.prompt, logits.shape[1], logits.device)
        if counts is not None:
            counts.follow(generation.tokens)
        return SampledRow(
            sampling, len(generation.tokens), generation.forbidden, generation.grammar, counts, request.inputs.logprobs
        )
