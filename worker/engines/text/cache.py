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
    """Keys and values of all layers, each of shape [blocks + 1, block_tokens, heads, head_size]."""

    def __init__(
        self, shape: CacheShape, blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_tokens = block_tokens
        #: No row holds it.
        self.spare_block = blocks
        size = (blocks + 1, block_tokens, shape.heads, shape.head_size)
        # Zeros, because attention multiplies what it masks by 0.
        self.keys = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]

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


class RowBlocks(NamedTuple):
    """Blocks of rows, of shape [rows, blocks]."""

    table: torch.Tensor
    #: The first block of a single row whose blocks follow each other: they are read where they are. None: copied.
    first: int | None = None

    def read(self, layer: torch.Tensor) -> torch.Tensor:
        """Return the rows' part of a layer's keys or values, of shape [rows, heads, tokens, head_size]."""
        (rows, number), (_, size, heads, head_size) = self.table.shape, layer.shape
        if self.first is not None:
            own = layer[self.first : self.first + number]
        else:
            own = layer.index_select(0, self.table.flatten())
        return own.reshape(rows, number * size, heads, head_size).transpose(1, 2)


def row_blocks(parts: Sequence[RowPart], cache: KeyValueCache, device: torch.device) -> RowBlocks:
    """Return the blocks of these rows."""
    table = block_table(parts, cache)
    is_run = len(parts) == 1 and bool((table[0].diff() == 1).all())
    return RowBlocks(to_device(table, device), int(table[0, 0]) if is_run else None)


def block_table(parts: Sequence[RowPart], cache: KeyValueCache) -> torch.Tensor:
    """Return the blocks of each row on the CPU, filled up with the one that no row needs."""
    numbers = [-(-(part.past + len(part.tokens)) // cache.block_tokens) for part in parts]
    table = torch.full((len(parts), max(numbers)), cache.spare_block)
    for row, (part, number) in enumerate(zip(parts, numbers, strict=True)):
        table[row, :number] = torch.tensor(part.blocks[:number])
    return table
