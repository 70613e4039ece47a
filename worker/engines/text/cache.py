"""The key-value cache on the device, and the part of it that each row of a pass uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from worker.engines.torch_device import to_device


class CacheShape(NamedTuple):
    """Size of the key-value cache of one token: layers, heads, and elements of each head."""

    layers: int
    heads: int
    head_size: int

    def token_bytes(self, dtype: torch.dtype) -> int:
        return 2 * self.layers * self.heads * self.head_size * dtype.itemsize


class KeyValueCache:
    """Keys and values of all layers, each of shape [blocks + 1, heads, block_tokens, head_size].

    Rows are read as whole blocks of a head, so that attention gets the tokens of each head one after the other.
    """

    def __init__(
        self, shape: CacheShape, blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_tokens = block_tokens
        #: No row holds it.
        self.spare_block = blocks
        size = (blocks + 1, shape.heads, block_tokens, shape.head_size)
        # Zeros, because attention multiplies what it masks by 0.
        self.keys = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]

    def places(self, slots: torch.Tensor) -> torch.Tensor:
        """Return where the heads of tokens are, of shape [tokens, heads], counted in vectors of `head_size`.

        A token's slot is its block times `block_tokens` plus its place in the block.
        """
        heads = self.keys[0].shape[1]
        first = slots // self.block_tokens * (heads * self.block_tokens) + slots % self.block_tokens
        return first[:, None] + torch.arange(heads, device=slots.device) * self.block_tokens

    def write(self, layer: int, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write keys and values of shape [tokens, heads, head_size]."""
        for cached, new in ((self.keys[layer], key), (self.values[layer], value)):
            cached.view(-1, new.shape[-1]).index_put_((places,), new)

    @torch.inference_mode()
    def clear(self, blocks: Sequence[int]) -> None:
        """Remove what is not finite."""
        for tensor in (*self.keys, *self.values):
            tensor[list(blocks)] = 0


class RowPart(NamedTuple):
    """A row's tokens in one pass: those after the `past` ones in its blocks, which have room for all."""

    tokens: Sequence[int]
    past: int
    blocks: Sequence[int]
    #: Logits are needed after the last of them.
    completes: bool = True


class RowBlocks:
    """Blocks of rows."""

    def __init__(self, table: torch.Tensor, cache: KeyValueCache) -> None:
        """`table`: the blocks of each row, of shape [rows, blocks]."""
        self.table = table
        heads = cache.keys[0].shape[1]
        of_heads = table[:, None] * heads + torch.arange(heads, device=table.device)[:, None]
        self._of_heads = of_heads.flatten()

    def read(self, layer: torch.Tensor) -> torch.Tensor:
        """Return the rows' part of a layer's keys or values, of shape [rows, heads, tokens, head_size]."""
        (rows, number), (_, heads, size, head_size) = self.table.shape, layer.shape
        own = layer.view(-1, size * head_size).index_select(0, self._of_heads)
        return own.view(rows, heads, number * size, head_size)


def row_blocks(parts: Sequence[RowPart], cache: KeyValueCache, device: torch.device) -> RowBlocks:
    """Return the blocks of these rows."""
    return RowBlocks(to_device(block_table(parts, cache), device), cache)


def block_table(parts: Sequence[RowPart], cache: KeyValueCache) -> torch.Tensor:
    """Return the blocks of each row on the CPU, filled up with the one that no row needs."""
    numbers = [-(-(part.past + len(part.tokens)) // cache.block_tokens) for part in parts]
    table = torch.full((len(parts), max(numbers)), cache.spare_block)
    for row, (part, number) in enumerate(zip(parts, numbers, strict=True)):
        table[row, :number] = torch.tensor(part.blocks[:number])
    return table
