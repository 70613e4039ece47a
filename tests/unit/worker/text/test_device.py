"""Parts of a pass that a CPU can run as well as a GPU: static passes, packed weights and rows of any lengths."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch

from tests.support.text_models import tiny_model
from worker.engines.text.admission import cache_shape
from worker.engines.text.attention import ATTENTION, computes_ragged
from worker.engines.text.attention_plan import ragged_rows
from worker.engines.text.cache import CacheShape, KeyValueCache, RowPart, row_blocks
from worker.engines.text.model_pass import ModelPass
from worker.engines.text.packed_linears import PackedLinear, pack_linears
from worker.engines.text.recordings import Recordings, StaticPass, recorded_size

_CPU = torch.device("cpu")


def test_static_pass_equals_the_plain_one() -> None:
    """Three rows of different lengths in a pass for four rows and more blocks than they have."""
    network = tiny_model()
    network.set_attn_implementation(ATTENTION)
    shape = cache_shape(network.config)
    caches = [KeyValueCache(shape, 12, 8, torch.float32, _CPU) for _ in range(2)]
    plain = [ModelPass(network, cache, _CPU) for cache in caches]
    prompts = [list(range(20, 20 + length)) for length in (3, 17, 9)]
    blocks = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    for compute in plain:
        compute([RowPart(prompt, 0, own) for prompt, own in zip(prompts, blocks, strict=True)])
    static = StaticPass(network, caches[1], 4, 16, _CPU)
    for step in range(3):
        parts = [RowPart([40 + step], len(prompt) + step, own) for prompt, own in zip(prompts, blocks, strict=True)]
        with torch.inference_mode():
            got = static(parts)
        assert torch.allclose(got, plain[0](parts), atol=1e-4)
    for one, other in zip(caches[0].keys, caches[1].keys, strict=True):
        assert torch.allclose(one[:12], other[:12], atol=1e-5), "no row's block is overwritten"


@pytest.mark.parametrize(
    ("rows", "blocks", "size"),
    [(1, 1, (1, 16)), (3, 16, (4, 16)), (9, 17, (16, 32)), (64, 512, (64, 512)), (65, 1, None)],
)
def test_recorded_sizes(rows: int, blocks: int, size: tuple[int, int] | None) -> None:
    assert recorded_size(rows, blocks) == size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_layer_computes_the_same(dtype: torch.dtype, bias: bool) -> None:
    linear = torch.nn.Linear(48, 70, bias=bias).to(dtype)
    inner = torch.nn.Sequential(linear)
    assert pack_linears(torch.nn.Sequential(inner, torch.nn.LayerNorm(70))) == 1
    packed = inner[0]
    assert isinstance(packed, PackedLinear)
    with torch.inference_mode():
        for rows in (1, 16, 33):
            hidden = torch.randn(1, rows, 48).to(dtype)
            plain, other = linear(hidden), torch.randn(1, rows, 70).to(dtype)
            for got, expected in (
                (packed(hidden), plain),
                (packed(hidden, "swish"), torch.nn.functional.silu(plain)),
                (packed.add(hidden, other), plain + other),
            ):
                assert torch.allclose(got, expected, rtol=2e-2, atol=2e-2)


def test_joint_layers_compute_the_same_and_hold_nothing() -> None:
    """Layers of one tensor are computed at once, whichever is asked first, and anew for the next tensor."""
    plain = tiny_model("qwen2").model.layers[0]
    packed = copy.deepcopy(plain)
    assert pack_linears(packed) == 7
    names = ("q_proj", "v_proj", "k_proj", "k_proj")
    with torch.inference_mode():
        for rows in (1, 5, 20):
            hidden = torch.randn(1, rows, plain.self_attn.q_proj.in_features)
            for name in names:
                expected = getattr(plain.self_attn, name)(hidden)
                assert torch.allclose(getattr(packed.self_attn, name)(hidden), expected, atol=1e-5)
            assert torch.allclose(packed.mlp(hidden), plain.mlp(hidden), atol=1e-5)
            held = weakref.ref(hidden)
            del hidden
            packed.self_attn.q_proj(torch.zeros(1, 1, plain.self_attn.q_proj.in_features))
            assert held() is None


def test_layers_that_do_not_fit_are_packed_apart() -> None:
    module = torch.nn.ModuleDict({"gate_proj": torch.nn.Linear(8, 4), "up_proj": torch.nn.Linear(8, 4, bias=False)})
    assert pack_linears(module) == 2
    assert all(isinstance(each, PackedLinear) for each in module.values())


def test_tied_embedding_is_kept() -> None:
    network = tiny_model(tie_word_embeddings=True)
    before = network.get_input_embeddings().weight.clone()
    pack_linears(network)
    assert torch.equal(network.get_input_embeddings().weight, before)


def test_rows_of_any_lengths_need_a_gpu() -> None:
    assert not computes_ragged(cache_shape(tiny_model().config), torch.float32, _CPU)


def test_places_of_rows_of_any_lengths() -> None:
    """A prompt of 5 tokens after 4 in the cache, and a last token, in blocks of 4."""
    cache = KeyValueCache(cache_shape(tiny_model().config), 9, 4, torch.float32, _CPU)
    rows = ragged_rows([RowPart(range(5), 4, [7, 2, 5]), RowPart([1], 5, [3, 0])], cache, _CPU)
    assert rows.query_ends.tolist() == [0, 5, 6]
    assert rows.key_ends.tolist() == [0, 9, 15]
    assert (rows.max_query, rows.max_key) == (5, 9)
    slots = [28, 29, 30, 31, 8, 9, 10, 11, 20, 12, 13, 14, 15, 0, 1]
    heads = cache.keys[0].shape[1]
    expected = [[(slot // 4 * heads + head) * 4 + slot % 4 for head in range(heads)] for slot in slots]
    assert rows.places.tolist() == expected


def test_cache_returns_what_was_written() -> None:
    """Tokens of two rows, whose blocks are in any order; each head has its own tokens one after the other."""
    cache = KeyValueCache(CacheShape(2, 3, 5), 6, 4, torch.float32, _CPU)
    parts = [RowPart(range(7), 0, [4, 1]), RowPart(range(3), 0, [3])]
    slots = [16, 17, 18, 19, 4, 5, 6, 12, 13, 14]
    key, value = torch.randn(2, len(slots), 3, 5)
    cache.write(1, cache.places(torch.tensor(slots)), key, value)
    for layer, written in ((cache.keys[1], key), (cache.values[1], value)):
        got = row_blocks(parts, cache, _CPU).read(layer)
        assert got.shape == (2, 3, 8, 5)
        assert torch.equal(got[0, :, :7], written[:7].transpose(0, 1))
        assert torch.equal(got[1, :, :3], written[7:].transpose(0, 1))
    assert not cache.keys[0].any()


def test_rows_of_very_different_lengths_equal_themselves_alone() -> None:
    """Long rows are in other groups than short ones, and blocks may be in any order."""
    network = tiny_model()
    network.set_attn_implementation(ATTENTION)
    cache = KeyValueCache(cache_shape(network.config), 100, 8, torch.float32, _CPU)
    compute = ModelPass(network, cache, _CPU)
    lengths, starts = (5, 300, 2, 150, 290, 7), (98, 0, 97, 76, 39, 99)
    blocks = [list(range(start, start + length // 8 + 1)) for start, length in zip(starts, lengths, strict=True)]
    blocks[3].reverse()
    for length, own in zip(lengths, blocks, strict=True):
        compute([RowPart([20 + (place * length) % 300 for place in range(length)], 0, own)])
    parts = [RowPart([50], length, own) for length, own in zip(lengths, blocks, strict=True)]
    parts[2] = RowPart([60, 61, 62], 2, blocks[2])
    together = compute(parts)
    assert torch.allclose(together, torch.cat([compute([part]) for part in parts]), atol=1e-4)


def test_steps_go_on_where_none_can_be_recorded() -> None:
    network = tiny_model()
    network.set_attn_implementation(ATTENTION)
    recordings = Recordings(network, KeyValueCache(cache_shape(network.config), 40, 8, torch.float32, _CPU), _CPU)
    for _ in range(2):
        with torch.inference_mode():
            assert recordings([RowPart([30], 0, [3])]) is None
