"""Everything of the text engine that computes: the key-value cache, attention over it, and the model's forward pass.

One pass takes the tokens of all rows, one row after the other without padding. A registered attention function of
transformers replaces the model's own: it writes keys and values into the cache and reads each row's own from it.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker.device_errors import device_error_kind
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
#: Rows of a recorded pass, of the numbers of blocks that are powers of two. Larger batches are not recorded: the device
#: takes longer for them than Python for their kernels.
_RECORDED_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_MIN_RECORDED_BLOCKS = 16
_MAX_RECORDINGS = 48
#: Of the keys that a layer of a recorded pass reads: it copies those of all its places.
_MAX_READ_BYTES = 256 << 20
#: Passes before a recording: they select kernels and allocate workspaces.
_PASSES_BEFORE = 2
#: Rows of up to so many blocks are computed together whatever their lengths.
_SHORT = 15


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


class RaggedRows(NamedTuple):
    """All rows of a pass for attention that takes rows of any lengths at once."""

    #: Sums of the rows' tokens in the pass and in the cache, from 0, as int32.
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    max_query: int
    max_key: int
    #: Places in the cache of all tokens of all rows.
    slots: torch.Tensor


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

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return 0 for tokens that a row sees and minus infinity for others, of shape [rows, 1, 1, tokens]."""
        if window not in self.masks:
            number = self.blocks.table.shape[1] * self.block_tokens
            self.masks[window] = _mask(self.positions, number, window, dtype)[:, None, None, :]
        return self.masks[window]


def _mask(positions: torch.Tensor, number: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask of tokens at these positions for the first `number` ones, of shape [positions, number].

    It holds numbers, because attention would convert truth values in every layer.
    """
    tokens = torch.arange(number, device=positions.device)
    is_seen = tokens <= positions[:, None]
    if window is not None:
        is_seen &= tokens > positions[:, None] - window
    return torch.zeros(is_seen.shape, dtype=dtype, device=positions.device).masked_fill_(~is_seen, -math.inf)


@dataclass(frozen=True)
class AttentionPlan:
    """How one pass uses the cache. Rows of several tokens come first, then rows of one."""

    cache: KeyValueCache
    #: Place in the cache of each token.
    slots: torch.Tensor
    prefills: Sequence[Prefill] = ()
    decodes: Sequence[DecodeGroup] = ()
    #: Of all rows; None: they are computed one by one, and groups of those of one token together.
    ragged: RaggedRows | None = None


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
    if plan.ragged is not None:
        return _ragged(plan.ragged, query, keys, values, scaling, sliding_window)[None], None
    outputs = [_prefill(each, query, key, value, keys, values, scaling, sliding_window) for each in plan.prefills]
    outputs += [_decode(each, query, keys, values, scaling, sliding_window) for each in plan.decodes]
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
    if row.past:
        total = row.past + row.end - row.start
        key, value = row.blocks.read(keys)[:, :, :total], row.blocks.read(values)[:, :, :total]
    else:
        key, value = key[:, :, row.start : row.end], value[:, :, row.start : row.end]
    mask = row.mask(window, query.dtype)
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
    group: DecodeGroup,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return the output for rows of one token, of shape [rows, heads, head_size].

    Query heads that share keys are the "tokens" of the query, so that no keys are repeated.
    """
    query = query[0, :, group.start : group.end].transpose(0, 1)
    rows, heads, size = query.shape
    output = functional.scaled_dot_product_attention(
        query.reshape(rows, keys.shape[2], heads // keys.shape[2], size),
        group.blocks.read(keys),
        group.blocks.read(values),
        attn_mask=group.mask(window, query.dtype),
        scale=scaling,
    )
    return output.reshape(rows, heads, size)


def _ragged(
    rows: RaggedRows,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return the output for all rows, of shape [tokens, heads, head_size]: each the same bits in any batch."""
    from torch.nn.attention import varlen  # seconds of imports that a CPU does not need

    output = varlen.varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        keys.flatten(0, 1).index_select(0, rows.slots),
        values.flatten(0, 1).index_select(0, rows.slots),
        rows.query_ends,
        rows.key_ends,
        rows.max_query,
        rows.max_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
        num_splits=1,
    )
    assert isinstance(output, torch.Tensor)
    return output


@torch.inference_mode()
def computes_ragged(shape: CacheShape, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether attention of rows of any lengths runs here, and equals that of one row."""
    if device.type != "cuda":
        return False
    keys, values = torch.randn(2, 1, 24, shape.heads, shape.head_size, dtype=dtype, device=device)
    query = torch.randn(1, 2 * shape.heads, 10, shape.head_size, dtype=dtype, device=device)
    ends = [torch.tensor(each, dtype=torch.int32, device=device) for each in ([0, 9, 10], [0, 9, 24])]
    slots = torch.arange(24, device=device)
    try:
        got = _ragged(RaggedRows(ends[0], ends[1], 9, 15, slots), query, keys, values, None, None)
        parts = [(slice(0, 9), slice(0, 9), True), (slice(9, 10), slice(9, 24), False)]
        expected = [
            functional.scaled_dot_product_attention(
                query[:, :, at],
                keys.transpose(1, 2)[:, :, of],
                values.transpose(1, 2)[:, :, of],
                is_causal=is_causal,
                enable_gqa=True,
            )[0].transpose(0, 1)
            for at, of, is_causal in parts
        ]
        return bool(torch.allclose(got, torch.cat(expected), rtol=2e-2, atol=2e-2))
    except (RuntimeError, TypeError, ValueError) as error:
        if device_error_kind(error) == "lost":
            raise
        log.info("rows are computed one by one: %s", error)
        return False


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)


class ModelPass:
    """The model's forward pass over the cache."""

    def __init__(self, model: Any, cache: KeyValueCache, device: torch.device, *, ragged: bool = False) -> None:
        """`ragged`: attention computes all rows at once, see `computes_ragged`."""
        self._model, self._cache, self._device, self._is_ragged = model, cache, device, ragged
        self._recordings = Recordings(model, cache, device) if device.type == "cuda" else None

    @torch.inference_mode()
    def __call__(self, parts: Sequence[RowPart]) -> torch.Tensor:
        """Return the logits after each row that is completed, in float32, of shape [rows, vocabulary]."""
        if self._recordings is not None and all(len(part.tokens) == 1 and part.completes for part in parts):
            recorded = self._recordings(parts)
            if recorded is not None:
                return recorded
        size = self._cache.block_tokens
        several = [place for place, part in enumerate(parts) if len(part.tokens) > 1]
        single = [place for place, part in enumerate(parts) if len(part.tokens) == 1]
        single.sort(key=lambda place: parts[place].past)  # so that rows of similar lengths are beside each other
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        ends: dict[int, int] = {}
        for place in (*several, *single):
            part = parts[place]
            end = part.past + len(part.tokens)
            tokens += part.tokens
            positions += range(part.past, end)
            slots += [part.blocks[at // size] * size + at % size for at in range(part.past, end)]
            ends[place] = len(tokens)
        if self._is_ragged:
            ragged = ragged_rows([parts[place] for place in ends], self._cache, self._device)
            plan = AttentionPlan(self._cache, self._tensor(slots), ragged=ragged)
        else:
            prefills = [self._prefill(parts[place], ends[place]) for place in several]
            decodes = self._decode_groups([parts[place] for place in single], ends[several[-1]] if several else 0)
            plan = AttentionPlan(self._cache, self._tensor(slots), prefills, decodes)
        last = [ends[place] - 1 for place, part in enumerate(parts) if part.completes]
        output = self._model(
            input_ids=self._tensor(tokens)[None],
            position_ids=self._tensor(positions)[None],
            use_cache=False,
            logits_to_keep=self._tensor(last or [0]),
            plan=plan,
        )
        logits: torch.Tensor = output.logits[0].float()
        return logits if last else logits[:0]

    def _prefill(self, part: RowPart, end: int) -> Prefill:
        return Prefill(end - len(part.tokens), end, part.past, row_blocks([part], self._cache, self._device))

    def _decode_groups(self, parts: Sequence[RowPart], start: int) -> list[DecodeGroup]:
        """Return groups in which no row has more than twice the blocks of another, but for short rows."""
        groups: list[DecodeGroup] = []
        size = self._cache.block_tokens
        for _, members in itertools.groupby(parts, key=lambda part: max(part.past // size, _SHORT).bit_length()):
            own = list(members)
            positions = self._tensor([part.past for part in own])
            blocks = row_blocks(own, self._cache, self._device)
            groups.append(DecodeGroup(start, start + len(own), blocks, positions, size))
            start += len(own)
        return groups

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return to_device(torch.tensor(values), self._device)


def row_blocks(parts: Sequence[RowPart], cache: KeyValueCache, device: torch.device) -> RowBlocks:
    """Return the blocks of these rows."""
    table = _table(parts, cache)
    is_run = len(parts) == 1 and bool((table[0].diff() == 1).all())
    return RowBlocks(to_device(table, device), int(table[0, 0]) if is_run else None)


def ragged_rows(parts: Sequence[RowPart], cache: KeyValueCache, device: torch.device) -> RaggedRows:
    """Return what attention of rows of any lengths needs to know of them."""
    queries = torch.tensor([0, *(len(part.tokens) for part in parts)])
    keys = torch.tensor([0, *(part.past + len(part.tokens) for part in parts)])
    table = _table(parts, cache)
    places = (table[:, :, None] * cache.block_tokens + torch.arange(cache.block_tokens)).flatten(1)
    slots = places[torch.arange(places.shape[1]) < keys[1:, None]]
    query_ends, key_ends = (to_device(each.cumsum(0).to(torch.int32), device) for each in (queries, keys))
    return RaggedRows(query_ends, key_ends, int(queries.max()), int(keys.max()), to_device(slots, device))


def _table(parts: Sequence[RowPart], cache: KeyValueCache) -> torch.Tensor:
    """Return the blocks of each row on the CPU, filled up with the one that no row needs."""
    numbers = [-(-(part.past + len(part.tokens)) // cache.block_tokens) for part in parts]
    table = torch.full((len(parts), max(numbers)), cache.spare_block)
    for row, (part, number) in enumerate(zip(parts, numbers, strict=True)):
        table[row, :number] = torch.tensor(part.blocks[:number])
    return table


class StaticPass:
    """A pass for up to `rows` rows of one token, in tensors that stay where they are: it can be recorded."""

    def __init__(self, model: Any, cache: KeyValueCache, rows: int, blocks: int, device: torch.device) -> None:
        self._model, self._cache, self._device = model, cache, device
        self._inputs = torch.zeros(3, rows, dtype=torch.long, device=device)
        self._table = torch.zeros(rows, blocks, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    def __call__(self, parts: Sequence[RowPart]) -> torch.Tensor:
        """Return logits as `ModelPass` does. Rows that are not there compute something in the spare block."""
        self._fill(parts)
        if self._graph is None:
            self._logits = self._compute()
        else:
            self._graph.replay()
        return self._logits[: len(parts)].clone()

    def record(self, pool: Any) -> None:
        """Record the pass with memory of this pool; calls replay it from now on."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_PASSES_BEFORE):
                self._compute()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._logits = self._compute()
        self._graph = graph

    def _fill(self, parts: Sequence[RowPart]) -> None:
        size, spare = self._cache.block_tokens, self._cache.spare_block
        inputs = torch.zeros(3, self._inputs.shape[1], dtype=torch.long)
        inputs[2] = spare * size
        slots = [part.blocks[part.past // size] * size + part.past % size for part in parts]
        own = [[part.tokens[0] for part in parts], [part.past for part in parts], slots]
        inputs[:, : len(parts)] = torch.tensor(own)
        table = torch.full(self._table.shape, spare)
        filled = _table(parts, self._cache)
        table[: len(parts), : filled.shape[1]] = filled
        self._inputs.copy_(to_device(inputs, self._device))
        self._table.copy_(to_device(table, self._device))

    def _compute(self) -> torch.Tensor:
        tokens, positions, slots = self._inputs
        group = DecodeGroup(0, len(slots), RowBlocks(self._table), positions, self._cache.block_tokens)
        plan = AttentionPlan(self._cache, slots, decodes=[group])
        output = self._model(input_ids=tokens[None], position_ids=positions[None], use_cache=False, plan=plan)
        logits: torch.Tensor = output.logits[0].float()
        return logits


def recorded_size(rows: int, blocks: int) -> tuple[int, int] | None:
    """Return the numbers of rows and blocks of the recorded pass for so many; None if there is none."""
    size = next((each for each in _RECORDED_ROWS if each >= rows), None)
    return None if size is None else (size, max(_MIN_RECORDED_BLOCKS, 1 << (blocks - 1).bit_length()))


class Recordings:
    """Passes as CUDA graphs, which launch all their kernels at once. Each is checked before its first use."""

    def __init__(self, model: Any, cache: KeyValueCache, device: torch.device) -> None:
        self._model, self._cache, self._device = model, cache, device
        self._passes: dict[tuple[int, int], StaticPass] = {}
        #: One for all, because none runs beside another.
        self._pool: Any = None
        self._is_off = False

    def __call__(self, parts: Sequence[RowPart]) -> torch.Tensor | None:
        """Return the logits of rows of one token each, or None if they have to be computed otherwise."""
        blocks = max(part.past // self._cache.block_tokens + 1 for part in parts)
        size = recorded_size(len(parts), blocks)
        if self._is_off or size is None or size[0] * size[1] * self._cache.keys[0][0].nbytes > _MAX_READ_BYTES:
            return None
        if size not in self._passes and len(self._passes) == _MAX_RECORDINGS:
            return None
        if size not in self._passes:
            try:
                return self._record(size, parts)
            except RuntimeError as error:
                if device_error_kind(error) == "lost":
                    raise
                log.warning("no more steps are recorded: %s", error)
                self._is_off = True
                return None
        return self._passes[size](parts)

    def _record(self, size: tuple[int, int], parts: Sequence[RowPart]) -> torch.Tensor:
        """Record a pass, and return its logits for these rows without the recording."""
        static = StaticPass(self._model, self._cache, *size, self._device)
        expected = static(parts)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        static.record(self._pool)
        if not torch.allclose(static(parts), expected, rtol=2e-2, atol=2e-2, equal_nan=True):
            raise RuntimeError("a recorded step computes something else")
        self._passes[size] = static
        return expected


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
    number = 0
    for name, child in module.named_children():
        packed = _packed(child) if type(child) is torch.nn.Linear else None
        if packed is not None:
            setattr(module, name, packed)
            number += 1
        else:
            number += pack_linears(child)
    return number


@torch.inference_mode()
def _packed(linear: torch.nn.Linear) -> PackedLinear | None:
    """Return the packed layer; None if this build of torch or this processor does not compute it."""
    hidden = torch.ones(2, linear.in_features, dtype=linear.weight.dtype)
    try:
        packed = PackedLinear(linear)
        got = packed(hidden)
    except (RuntimeError, AttributeError, TypeError) as error:
        log.info("a linear layer is not packed: %s", error)
        return None
    return packed if torch.allclose(got, linear(hidden), rtol=2e-2, atol=2e-2, equal_nan=True) else None
