"""How one pass uses the cache: which tokens each row attends to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from worker.engines.text.cache import KeyValueCache, RowBlocks, RowPart, block_table
from worker.engines.torch_device import to_device


class RaggedRows(NamedTuple):
    """All rows of a pass for attention that takes rows of any lengths at once."""

    #: Sums of the rows' tokens in the pass and in the cache, from 0, as int32.
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    max_query: int
    max_key: int
    #: Places in the cache of all tokens of all rows, see `KeyValueCache.places`.
    places: torch.Tensor


@dataclass
class Prefill:
    """A row of several tokens in a pass: its place in it, tokens before, and blocks."""

    start: int
    end: int
    past: int
    blocks: RowBlocks
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Return what each token sees, as `DecodeGroup.mask` does: [tokens, all tokens]; None for all before it."""
        total = self.past + self.end - self.start
        if not self.past and (window is None or total <= window):
            return None
        if window not in self.masks:
            positions = torch.arange(self.past, total, device=self.blocks.table.device)
            self.masks[window] = _mask(positions, total, window, dtype)
        return self.masks[window]


@dataclass
class DecodeGroup:
    """Rows of one token and of similar lengths: their place in the pass, blocks, and the position of each token."""

    start: int
    end: int
    blocks: RowBlocks
    positions: torch.Tensor
    block_tokens: int
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)
    biases: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return 0 for tokens that a row sees and minus infinity for others, of shape [rows, 1, 1, tokens]."""
        if window not in self.masks:
            number = self.blocks.table.shape[1] * self.block_tokens
            self.masks[window] = _mask(self.positions, number, window, dtype)[:, None, None, :]
        return self.masks[window]

    def bias(self, window: int | None, heads: int, queries: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the mask for each of the heads that keys have and its queries: [rows * heads, queries, tokens]."""
        if window not in self.biases:
            mask = self.mask(window, dtype)
            self.biases[window] = mask.expand(-1, heads, queries, -1).flatten(0, 1)
        return self.biases[window]


def _mask(positions: torch.Tensor, number: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask of tokens at these positions for the first `number` ones, of shape [positions, number].

    It holds numbers, because attention would convert truth values in every layer.
    """
    tokens = torch.arange(number, device=positions.device)
    is_seen = tokens <= positions[:, None]
    if window is not None:
        is_seen &= tokens > positions[:, None] - window
    return torch.zeros(is_seen.shape, dtype=dtype, device=positions.device).masked_fill_(~is_seen, -math.inf)


class AttentionCall(NamedTuple):
    """How a model's layer attends: the factor of its scores, and how many tokens it sees at most; None for all."""

    layer: int
    scaling: float | None
    window: int | None


@dataclass(frozen=True)
class AttentionPlan:
    """How one pass uses the cache. Rows of several tokens come first, then rows of one."""

    cache: KeyValueCache
    #: Where each token's heads belong in the cache, see `KeyValueCache.places`.
    places: torch.Tensor
    prefills: Sequence[Prefill] = ()
    decodes: Sequence[DecodeGroup] = ()
    #: Of all rows; None: they are computed one by one, and groups of those of one token together.
    ragged: RaggedRows | None = None
    #: Places of the tokens that the last layer has to compute; None: of all.
    last: torch.Tensor | None = None
    #: Number of tokens after those of all rows, which no one needs.
    padding: int = 0
    #: Of the model's own layers in this pass. Fused layers make none.
    calls: list[AttentionCall] = field(default_factory=list)
    _rotations: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)

    def rotation(self, cosine: torch.Tensor, sine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the angles of shape [1, tokens, head_size] for `x * first + swapped halves of x * second`.

        Both have shape [tokens, 1, head_size]. They are made once for all layers.
        """
        if id(sine) not in self._rotations:
            first, second = sine[0, :, None].chunk(2, -1)
            # With the tensor, so that no other gets its identity.
            self._rotations[id(sine)] = (sine, cosine[0, :, None], torch.cat((-first, second), -1))
        _, straight, swapped = self._rotations[id(sine)]
        return straight, swapped


def ragged_rows(parts: Sequence[RowPart], cache: KeyValueCache, device: torch.device) -> RaggedRows:
    """Return what attention of rows of any lengths needs to know of them."""
    queries = torch.tensor([0, *(len(part.tokens) for part in parts)])
    keys = torch.tensor([0, *(part.past + len(part.tokens) for part in parts)])
    table = block_table(parts, cache)
    places = (table[:, :, None] * cache.block_tokens + torch.arange(cache.block_tokens)).flatten(1)
    slots = places[torch.arange(places.shape[1]) < keys[1:, None]]
    query_ends, key_ends = (to_device(each.cumsum(0).to(torch.int32), device) for each in (queries, keys))
    return RaggedRows(query_ends, key_ends, int(queries.max()), int(keys.max()), cache.places(to_device(slots, device)))
