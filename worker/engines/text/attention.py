"""Attention over the cache, which replaces the model's own.

One pass takes the tokens of all rows, one row after the other without padding. A registered attention function of
transformers writes keys and values into the cache and reads each row's own from it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker.device_errors import device_error_kind
from worker.engine import UnsupportedModel
from worker.engines.text.attention_plan import AttentionCall, AttentionPlan, DecodeGroup, Prefill, RaggedRows
from worker.engines.text.cache import CacheShape

log = logging.getLogger(__name__)

#: Name of the attention function in transformers' registry.
ATTENTION = "muster"
#: Arguments of attention functions that change the result and are not applied here.
_UNSUPPORTED = {
    "softcap": "soft caps of attention logits",
    "s_aux": "attention sinks",
    "position_bias": "position bias",
}


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
    call = AttentionCall(layer, scaling, sliding_window)
    plan.calls.append(call)
    own = (each[0].transpose(0, 1) for each in (query, key, value))
    return attend(plan, call, *own)[None], None


def attend(
    plan: AttentionPlan, call: AttentionCall, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Write keys and values into the cache, and attend to each row's own. All have shape [tokens, heads, head_size]."""
    keys, values = plan.cache.keys[call.layer], plan.cache.values[call.layer]
    own = len(plan.places)
    plan.cache.write(call.layer, plan.places, key[:own], value[:own])
    scaling, window = call.scaling, call.window
    if plan.ragged is not None:
        return _ragged(plan.ragged, query, keys, values, scaling, window)
    outputs = [_prefill(each, query, key, value, keys, values, scaling, window) for each in plan.prefills]
    outputs += [_decode(each, query, keys, values, scaling, window) for each in plan.decodes]
    if plan.padding:
        outputs.append(query.new_zeros(plan.padding, *query.shape[1:]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


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
        own_keys, own_values = row.blocks.read(keys)[:, :, :total], row.blocks.read(values)[:, :, :total]
    else:
        own_keys, own_values = (each[row.start : row.end].transpose(0, 1)[None] for each in (key, value))
    mask = row.mask(window, query.dtype)
    output = functional.scaled_dot_product_attention(
        query[row.start : row.end].transpose(0, 1)[None],
        own_keys,
        own_values,
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
    query = query[group.start : group.end]
    (rows, heads, size), key_heads = query.shape, keys.shape[1]
    query = query.reshape(rows, key_heads, heads // key_heads, size)
    own_keys, own_values = group.blocks.read(keys), group.blocks.read(values)
    if query.device.type == "cpu" and query.dtype == torch.float32:
        # Half the time of the fused function, which has many small parts. It would round scores of half precision.
        bias = group.bias(window, key_heads, heads // key_heads, query.dtype)
        factor = size**-0.5 if scaling is None else scaling
        scores = torch.baddbmm(bias, query.flatten(0, 1), own_keys.flatten(0, 1).transpose(1, 2), alpha=factor)
        return torch.bmm(scores.softmax(-1), own_values.flatten(0, 1)).view(rows, heads, size)
    output = functional.scaled_dot_product_attention(
        query, own_keys, own_values, attn_mask=group.mask(window, query.dtype), scale=scaling
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

    (_, heads), size = rows.places.shape, query.shape[2]
    own_keys, own_values = (
        each.view(-1, size).index_select(0, rows.places.flatten()).view(-1, heads, size) for each in (keys, values)
    )
    output = varlen.varlen_attn(
        query.contiguous(),
        own_keys,
        own_values,
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
    keys, values = torch.randn(2, 1, shape.heads, 24, shape.head_size, dtype=dtype, device=device)
    query = torch.randn(10, 2 * shape.heads, shape.head_size, dtype=dtype, device=device)
    ends = [torch.tensor(each, dtype=torch.int32, device=device) for each in ([0, 9, 10], [0, 9, 24])]
    places = torch.arange(24, device=device)[:, None] + 24 * torch.arange(shape.heads, device=device)
    try:
        got = _ragged(RaggedRows(ends[0], ends[1], 9, 15, places), query, keys, values, None, None)
        parts = [(slice(0, 9), slice(0, 9), True), (slice(9, 10), slice(9, 24), False)]
        expected = [
            functional.scaled_dot_product_attention(
                query[at].transpose(0, 1)[None],
                keys[:, :, of],
                values[:, :, of],
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
