"""Which language models the engine computes: by what they need, not by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from worker.engine import UnsupportedModel
from worker.engines.text.attention import ATTENTION
from worker.engines.text.cache import CacheShape, RowPart

_LAYERS = frozenset({"full_attention", "sliding_attention"})
#: Largest distance of logits from those of transformers, relative to their size.
_MAX_DISTANCE = {torch.float32: 1e-3}
_MAX_DISTANCE_HALF = 0.1
_INSTEAD = "use engine: vllm"


def check_config(config: Any) -> None:
    """Raises `UnsupportedModel` for a model that needs what the engine does not compute. Reads no weights."""
    name = getattr(config, "model_type", type(config).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{name} models have an encoder, which engine: text does not run; {_INSTEAD}")
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModel(f"the weights are quantized, which engine: text does not support; {_INSTEAD}")
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
    if others:
        raise UnsupportedModel(f"{name} models have layers of {others[0]}, which engine: text lacks; {_INSTEAD}")
    if getattr(config, "attn_logit_softcapping", None):
        raise UnsupportedModel(f"this {name} model caps attention logits, which engine: text does not; {_INSTEAD}")
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        raise UnsupportedModel(f"{name} models are no language models that engine: text can run; {_INSTEAD}")


def check_network(model: Any) -> None:
    """Replace the attention of a model. Raises `UnsupportedModel` if that cannot be done."""
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"{type(model).__name__} has an attention of its own, which engine: text cannot batch; {_INSTEAD}"
        )
    model.set_attn_implementation(ATTENTION)


def cache_shape(config: Any) -> CacheShape:
    """Return the size of a token's keys and values."""
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return CacheShape(config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, head_size)


@torch.inference_mode()
def check_equality(
    model: Any, compute: Callable[[Sequence[RowPart]], torch.Tensor], block_tokens: int, device: torch.device
) -> None:
    """Compare a short text with transformers' own computation, in two parts and a last token.

    Raises `UnsupportedModel` unless the logits are equal up to rounding. Uses the first three blocks of the cache.
    """
    size = min(2 * block_tokens + 5, getattr(model.config, "max_position_embeddings", None) or 2 * block_tokens)
    first = size // 2 + 1
    tokens = [(7 * place * place + 11) % model.config.vocab_size for place in range(size)]
    parts = [(0, first), (first, size - 1), (size - 1, size)]
    try:
        got = torch.cat([compute([RowPart(tokens[start:end], start, [0, 1, 2])]) for start, end in parts])
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        raise UnsupportedModel(f"{type(model).__name__} does not run in engine: text ({error}); {_INSTEAD}") from error
    model.set_attn_implementation("sdpa" if getattr(model, "_supports_sdpa", False) else "eager")
    try:
        expected = model(input_ids=torch.tensor([tokens], device=device), use_cache=False).logits[0].float()
    finally:
        model.set_attn_implementation(ATTENTION)
    expected = expected[[end - 1 for _, end in parts]]
    if not bool(torch.isfinite(expected).all()):
        raise UnsupportedModel(f"the model's output is not finite in {model.dtype}; set dtype, or download it again")
    if not equals(got, expected, model.dtype):
        raise UnsupportedModel(
            f"{type(model).__name__} computes other results in engine: text than in transformers (they differ by "
            f"{_distance(got, expected):.2g}); {_INSTEAD}"
        )


def equals(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether logits of a model of this precision are equal up to rounding, and finite."""
    return _distance(got, expected) <= _MAX_DISTANCE.get(dtype, _MAX_DISTANCE_HALF)


def _distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm().clamp(min=1e-9))
