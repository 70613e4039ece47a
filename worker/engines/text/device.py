"""Everything of the text engine that computes: the key-value cache, attention over it, and the model's forward pass.

One pass takes the tokens of all rows, one row after the other without padding. A registered attention function of
transformers replaces the model's own: it writes keys and values into the cache and reads each row's own from it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker.engine import UnsupportedModel
from worker.engines.torch_device import to_device

log = logging.getLogger(__name__)

#: Name of the attention function in transformers' registry.
ATTENTION = "muster"
#: Arguments of attention functions that change the result and are not applied here.
_UNSUPPORTED = {
    "softcap": "soft caps of attention logits",
    "s_aux": "attention sinks",
    "position_bias": "position bias",
}
#: Number of rows that packed weights are laid out for. Others are as fast as with plain weights or faster.
_PACKED_ROWS = 16


class CacheShape(NamedTuple):
    """Size of the key-value cache of one token: layers, heads, and elements of each head."""

    layers: int
    heads: int
    head_size: int

    def token_bytes(self, dtype: torch.dtype) -> int:
        return 2 * self.layers * self.heads * self.head_size * dtype.itemsize


class KeyValueCache:
    """Keys and values of all layers, each of shape [blocks, block_tokens, heads, head_size].

    The block after the last is for what no row needs.
    """

    def __init__(
        self, shape: CacheShape, blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_tokens = block_tokens
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


class Prefill(NamedTuple):
    """Rows of several tokens in a pass: their places in it, tokens before, and blocks."""

    start: int
    end: int
    past: int
    blocks: torch.Tensor


@dataclass
class AttentionPlan:
    """How one pass uses the cache. Rows of several tokens come first, then rows of one."""

    cache: KeyValueCache
    #: Place in the cache of each token.
    slots: torch.Tensor
    prefills: Sequence[Prefill]
    #: Of the first row of one token.
    start: int
    #: Blocks of the rows of one token, of shape [rows, blocks], and the position of each token.
    table: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def decode_mask(self, window: int | None) -> torch.Tensor:
        """Return which tokens each row of one token sees, of shape [rows, 1, 1, tokens]."""
        if window not in self.masks:
            assert self.table is not None
            assert self.positions is not None
            tokens = torch.arange(self.table.shape[1] * self.cache.block_tokens, device=self.table.device)
            mask = tokens <= self.positions[:, None]
            if window is not None:
                mask &= tokens > self.positions[:, None] - window
            self.masks[window] = mask[:, None, None, :]
        return self.masks[window]


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    plan: AttentionPlan | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to each row's own tokens. Query, key and value have shape [1, heads, tokens, head_size].

    Returns shape [1, tokens, heads, head_size]. Raises `UnsupportedModel` for what it does not compute.
    """
    del attention_mask  # transformers makes none for this function
    if plan is None:
        raise UnsupportedModel("the model does not pass its arguments on to the attention function")
    for name, what in _UNSUPPORTED.items():
        if others.get(name) is not None:
            raise UnsupportedModel(f"{what} are not supported by engine: text; use engine: vllm")
    layer = module.layer_idx
    assert isinstance(layer, int)
    keys, values = plan.cache.keys[layer], plan.cache.values[layer]
    keys.flatten(0, 1).index_copy_(0, plan.slots, key[0].transpose(0, 1))
    values.flatten(0, 1).index_copy_(0, plan.slots, value[0].transpose(0, 1))
    outputs = [_prefill(each, query, key, value, keys, values, scaling, sliding_window) for each in plan.prefills]
    if plan.table is not None:
        outputs.append(_decode(plan, query[0, :, plan.start :], keys, values, scaling, sliding_window))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def _prefill(
    row: Prefill,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return the output for a row of several tokens, of shape [tokens, heads, head_size]."""
    tokens, total = row.end - row.start, row.past + row.end - row.start
    if row.past:
        key = keys.index_select(0, row.blocks).flatten(0, 1)[:total].transpose(0, 1)[None]
        value = values.index_select(0, row.blocks).flatten(0, 1)[:total].transpose(0, 1)[None]
    else:
        key, value = key[:, :, row.start : row.end], value[:, :, row.start : row.end]
    mask = None
    if row.past or (window is not None and tokens > window):
        at = torch.arange(row.past, total, device=query.device)[:, None]
        seen = torch.arange(total, device=query.device)
        mask = seen <= at
        if window is not None:
            mask &= seen > at - window
    output = functional.scaled_dot_product_attention(
        query[:, :, row.start : row.end],
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=True,
    )
    return output[0].transpose(0, 1)


def _decode(
    plan: AttentionPlan,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return the output for the rows of one token, of shape [rows, heads, head_size].

    Query heads that share keys are the "tokens" of the query, so that no keys are repeated.
    """
    assert plan.table is not None
    (heads, rows, size), (count, blocks), kv_heads = query.shape, plan.table.shape, keys.shape[2]
    shape = count, blocks * keys.shape[1], kv_heads, size
    table = plan.table.flatten()
    output = functional.scaled_dot_product_attention(
        query.transpose(0, 1).reshape(rows, kv_heads, heads // kv_heads, size),
        keys.index_select(0, table).view(shape).transpose(1, 2),
        values.index_select(0, table).view(shape).transpose(1, 2),
        attn_mask=plan.decode_mask(window),
        scale=scaling,
    )
    return output.reshape(rows, heads, size)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)


class ModelPass:
    """The model's forward pass over the cache."""

    def __init__(self, model: Any, cache: KeyValueCache, device: torch.device) -> None:
        self._model, self._cache, self._device = model, cache, device

    @torch.inference_mode()
    def __call__(self, parts: Sequence[RowPart]) -> torch.Tensor:
        """Return the logits after each row that is completed, in float32, of shape [rows, vocabulary].

        Rows of several tokens come first.
        """
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[Prefill] = []
        last: list[int] = []
        size = self._cache.block_tokens
        for part in parts:
            start, end = len(tokens), part.past + len(part.tokens)
            tokens += part.tokens
            positions += range(part.past, end)
            slots += [part.blocks[at // size] * size + at % size for at in range(part.past, end)]
            if part.completes:
                last.append(len(tokens) - 1)
            if len(part.tokens) > 1:
                blocks = self._tensor(part.blocks[: -(-end // size)])
                rows.append(Prefill(start, len(tokens), part.past, blocks))
        start = rows[-1].end if rows else 0
        plan = AttentionPlan(self._cache, self._tensor(slots), rows, start)
        if len(rows) < len(parts):
            plan.table = self._table(parts[len(rows) :])
            plan.positions = self._tensor(positions[start:])
        output = self._model(
            input_ids=self._tensor(tokens)[None],
            position_ids=self._tensor(positions)[None],
            use_cache=False,
            logits_to_keep=self._tensor(last or [0]),
            plan=plan,
        )
        logits: torch.Tensor = output.logits[0].float()
        return logits if last else logits[:0]

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return to_device(torch.tensor(values), self._device)

    def _table(self, parts: Sequence[RowPart]) -> torch.Tensor:
        """Return the blocks of each row, filled up with the last block, which no row needs."""
        unneeded = self._cache.keys[0].shape[0] - 1
        numbers = [part.past // self._cache.block_tokens + 1 for part in parts]
        table = torch.full((len(parts), max(numbers)), unneeded)
        for row, (part, number) in enumerate(zip(parts, numbers, strict=True)):
            table[row, :number] = torch.tensor(part.blocks[:number])
        return to_device(table, self._device)


class PackedLinear(torch.nn.Module):
    """A linear layer with its weights in oneDNN's own layout, which a CPU multiplies up to four times as fast."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _PACKED_ROWS)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self._packed, self.bias, "none", [], "")
        return output


def pack_linears(module: torch.nn.Module) -> int:
    """Replace linear layers by packed ones where that computes the same; return their number."""
    packed = 0
    for name, child in module.named_children():
        if type(child) is torch.nn.Linear and _can_pack(child):
            setattr(module, name, PackedLinear(child))
            packed += 1
        else:
            packed += pack_linears(child)
    return packed


@torch.inference_mode()
def _can_pack(linear: torch.nn.Linear) -> bool:
    """Return whether this build of torch packs the layer."""
    try:
        hidden = torch.ones(2, linear.in_features, dtype=linear.weight.dtype)
        got = PackedLinear(linear)(hidden)
    except (RuntimeError, AttributeError, TypeError) as error:
        log.info("a linear layer is not packed: %s", error)
        return False
    return bool(torch.allclose(got, linear(hidden), rtol=2e-2, atol=2e-2))
