"""Fused layers: used where they compute what the model's own layers do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.text_models import tiny_model
from worker.engines.text.admission import cache_shape
from worker.engines.text.attention import ATTENTION
from worker.engines.text.cache import KeyValueCache, RowPart
from worker.engines.text.fused_layers import FusedLayer, fuse_layers
from worker.engines.text.model_pass import ModelPass
from worker.engines.text.packed_linears import pack_linears

_CPU = torch.device("cpu")


def _network(family: str, **config: Any) -> tuple[Any, KeyValueCache]:
    network = tiny_model(family, **config)
    network.set_attn_implementation(ATTENTION)
    pack_linears(network)
    return network, KeyValueCache(cache_shape(network.config), 12, 8, network.dtype, _CPU)


def _parts() -> list[list[RowPart]]:
    """Two prompts, the rest of one beside a token of the other, and a token of each."""
    first, second = [place % 90 + 30 for place in range(20)], [place % 70 + 200 for place in range(11)]
    blocks = [[0, 1, 2], [3, 4, 5]]
    return [
        [RowPart(first[:14], 0, blocks[0], False), RowPart(second, 0, blocks[1])],
        [RowPart(first[14:], 14, blocks[0]), RowPart([77], 11, blocks[1])],
        [RowPart([78], 20, blocks[0]), RowPart([79], 12, blocks[1])],
        [RowPart([80, 81], 21, blocks[0], False)],
    ]


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": 5}),
    ],
)
def test_fused_layers_compute_the_same(family: str, config: dict[str, Any]) -> None:
    network, cache = _network(family, **config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2)
    expected = [ModelPass(network, cache, _CPU)(parts) for parts in _parts()]
    assert fuse_layers(network, cache, _CPU)
    assert all(isinstance(layer, FusedLayer) for layer in network.model.layers)
    fused = ModelPass(network, cache, _CPU, fused=True)
    for parts, logits in zip(_parts(), expected, strict=True):
        got = fused(parts)
        assert got.shape == logits.shape
        assert torch.allclose(got, logits, atol=1e-3)


def test_fused_layers_of_half_precision() -> None:
    """Norms and angles are rounded at other places than in the model's own layers."""
    network, cache = _network("qwen3")
    network.to(torch.bfloat16)
    cache = KeyValueCache(cache_shape(network.config), 12, 8, torch.bfloat16, _CPU)
    assert not fuse_layers(network, cache, _CPU), "its weights are packed in another precision"
    network = tiny_model("qwen3").to(torch.bfloat16)
    network.set_attn_implementation(ATTENTION)
    pack_linears(network)
    assert fuse_layers(network, cache, _CPU)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gemma2", {"attn_logit_softcapping": None}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"hidden_act": "relu"}),
    ],
)
def test_layers_of_another_kind_are_kept(family: str, config: dict[str, Any]) -> None:
    network, cache = _network(family, **config)
    layers = list(network.model.layers)
    assert not fuse_layers(network, cache, _CPU)
    assert list(network.model.layers) == layers


def test_layers_without_packed_weights_are_kept() -> None:
    network = tiny_model()
    network.set_attn_implementation(ATTENTION)
    assert not fuse_layers(network, KeyValueCache(cache_shape(network.config), 12, 8, torch.float32, _CPU), _CPU)


def test_model_that_is_not_finite_is_kept() -> None:
    network, cache = _network("llama")
    torch.nn.init.constant_(network.model.norm.weight, float("nan"))
    assert not fuse_layers(network, cache, _CPU)


def test_layers_are_fused_anew_and_still_generate() -> None:
    """A second engine may use the model, and transformers itself."""
    network, cache = _network("llama")
    prompt = torch.tensor([[20, 30, 40]])
    network.set_attn_implementation("sdpa")
    expected = network.generate(prompt, max_new_tokens=5, do_sample=False)
    network.set_attn_implementation(ATTENTION)
    assert fuse_layers(network, cache, _CPU)
    first = list(network.model.layers)
    assert fuse_layers(network, cache, _CPU)
    assert [layer.plain for layer in network.model.layers] == [layer.plain for layer in first]
    network.set_attn_implementation("sdpa")
    assert torch.equal(network.generate(prompt, max_new_tokens=5, do_sample=False), expected)
