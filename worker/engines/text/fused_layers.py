"""Decoder layers of the usual kind in fewer operations: on a CPU, small ones cost more than what they compute."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from worker.engines.text.admission import equals
from worker.engines.text.attention import attend
from worker.engines.text.attention_plan import AttentionCall, AttentionPlan
from worker.engines.text.cache import KeyValueCache, RowPart
from worker.engines.text.model_pass import ModelPass

log = logging.getLogger(__name__)

#: Tokens on which layers are compared: the last is a text of its own.
_TOKENS = 5


class FusedLayer(torch.nn.Module):
    """Attention and a gated network, each after a norm and added to its input. All heads turn at once.

    In a pass of the engine it replaces the model's own layer, which computes all others.
    """

    def __init__(self, plain: Any, call: AttentionCall, *, is_last: bool) -> None:
        """`plain`: the model's own layer with packed weights. `call`: how it attends.

        `is_last`: later parts of the model only need the tokens `AttentionPlan.last`. Raises `AttributeError` or
        `TypeError` for a layer of another kind.
        """
        super().__init__()
        self.plain = plain
        self._call, self._is_last = call, is_last
        own, network = plain.self_attn, plain.mlp
        self._joint, self._output = own.q_proj.joint.packed, own.o_proj
        self._gate, self._up, self._down = network.gate_proj, network.up_proj, network.down_proj
        self._norms = [_Norm(each.weight, each) for each in (plain.input_layernorm, plain.post_attention_layernorm)]
        self._size = own.head_dim
        self._heads, self._key_heads, _ = (width // self._size for width in own.q_proj.joint.sizes)
        self._head_norm: _Norm | None = None
        if hasattr(own, "q_norm"):
            weights = (own.q_norm.weight.expand(self._heads, -1), own.k_norm.weight.expand(self._key_heads, -1))
            self._head_norm = _Norm(torch.cat(weights), own.q_norm)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        plan: AttentionPlan | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """Return shape [1, tokens, width]."""
        if plan is None:
            output: torch.Tensor = self.plain(hidden_states, position_embeddings=position_embeddings, **others)
            return output
        assert position_embeddings is not None
        hidden = hidden_states[0]
        attended = self._attend(self._norms[0](hidden), plan, position_embeddings)
        if self._is_last and plan.last is not None:
            hidden, attended = hidden[plan.last], attended[plan.last]
        hidden = self._output.add(attended, hidden)
        normed = self._norms[1](hidden)
        gated = self._gate(normed, "swish").mul_(self._up(normed))
        result: torch.Tensor = self._down.add(gated, hidden)
        return result[None]

    def _attend(
        self, normed: torch.Tensor, plan: AttentionPlan, angles: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return the output of all heads, of shape [tokens, heads * head_size]."""
        joint = self._joint(normed).view(len(normed), -1, self._size)
        turning = self._heads + self._key_heads
        heads, value = joint[:, :turning], joint[:, turning:]
        if self._head_norm is not None:
            heads = self._head_norm(heads)
        straight, swapped = plan.rotation(*angles)
        heads = torch.addcmul(heads * straight, heads.roll(self._size // 2, -1), swapped)
        output = attend(plan, self._call, heads[:, : self._heads], heads[:, self._heads :], value)
        return output.reshape(len(normed), -1)


class _Norm:
    """Divides by the root of the mean square, in four operations; torch's own function has seven."""

    def __init__(self, weight: torch.Tensor, plain: Any) -> None:
        """`weight`: of shape [..., width]. `plain`: the model's own norm."""
        width = weight.shape[-1]
        # With the length in place of the mean.
        self._weight = weight.detach().float() * width**0.5
        self._least = torch.full((1,), (plain.variance_epsilon * width) ** 0.5)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(hidden, 2, -1, True, dtype=torch.float32)
        normed: torch.Tensor = hidden * self._weight / torch.hypot(length, self._least)
        return normed.to(hidden.dtype)


def fuse_layers(network: Any, cache: KeyValueCache, device: torch.device) -> bool:
    """Replace all layers of a model with packed weights if that computes the same; return whether it did.

    Uses the first two blocks of the cache, before any row does.
    """
    layers = getattr(getattr(network, "model", None), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        return False
    plain = [getattr(layer, "plain", layer) for layer in layers]
    _replace(layers, plain)
    tokens = [(7 * place + 11) % network.config.vocab_size for place in range(_TOKENS)]
    parts = [RowPart(tokens[:-1], 0, [0]), RowPart(tokens[-1:], 2, [1])]
    try:
        expected, calls = ModelPass(network, cache, device).observe(parts)
        fused = [
            FusedLayer(layer, call, is_last=number == len(plain))
            for number, (layer, call) in enumerate(zip(plain, calls, strict=True), 1)
        ]
        _replace(layers, fused)
        is_equal = equals(ModelPass(network, cache, device, fused=True)(parts), expected, network.dtype)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        log.info("layers are not fused: %s", error)
        is_equal = False
    if not is_equal:
        _replace(layers, plain)
    return is_equal


def _replace(layers: torch.nn.ModuleList, others: Sequence[torch.nn.Module]) -> None:
    for number, each in enumerate(others):
        layers[number] = each
