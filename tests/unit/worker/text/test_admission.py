"""Which models the engine takes, and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, GptOssConfig, LlamaConfig, MambaConfig, T5Config

from configs.model_settings import Model
from configs.text_settings import TextGeneration
from tests.support.text_engine import BLOCK_BYTES, request, run_one, text_engine
from tests.support.text_models import save_model, tiny_model, tokenization
from worker.engine import UnsupportedModel
from worker.engines.factory import build
from worker.engines.text.admission import check_config
from worker.engines.text.engine import TextEngine
from worker.engines.text.loading import choose_dtype, fit_cache, max_context

_CPU = torch.device("cpu")


def load(model: Model, parts: Any = None) -> TextEngine:
    engine = TextEngine(model, "cpu", parts)
    engine.fetch()
    engine.load()
    engine.warm_up()
    return engine


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config(), "encoder"),
        (MambaConfig(), "layers of linear_attention"),
        (Gemma2Config(), "caps attention logits"),
        (LlamaConfig(quantization_config={"quant_method": "gptq"}), "quantized"),
    ],
)
def test_refused_configuration_names_another_engine(config: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"(?s){reason}.*engine: vllm"):
        check_config(config)


def test_capped_attention_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="soft caps of attention logits"):
        text_engine("gemma2", config={"attn_logit_softcapping": 50.0})


def test_attention_sinks_are_refused() -> None:
    from transformers import AutoModelForCausalLM

    config = GptOssConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        pad_token_id=0,
    )
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model = Model(engine="text", path="tiny", text=TextGeneration(kv_cache=1 << 20, context_length=64))
    with pytest.raises(UnsupportedModel, match=r"attention sinks.*engine: vllm"):
        load(model, (network, tokenization()))


def test_other_results_than_transformers_are_refused() -> None:
    """A model that reads positions in a way of its own."""
    network = tiny_model()
    inner = network.model.rotary_emb.forward

    def rotary(hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return inner(hidden, position_ids - position_ids.min())

    network.model.rotary_emb.forward = rotary
    model = Model(engine="text", path="tiny", text=TextGeneration(kv_cache=1 << 20, context_length=64))
    with pytest.raises(UnsupportedModel, match=r"other results.*engine: vllm"):
        load(model, (network, tokenization()))


def test_checkpoint_that_is_not_finite_is_refused() -> None:
    network = tiny_model()
    with torch.inference_mode():
        network.get_output_embeddings().weight.fill_(float("nan"))
    model = Model(engine="text", path="tiny", text=TextGeneration(kv_cache=1 << 20, context_length=64))
    with pytest.raises(UnsupportedModel, match="not finite"):
        load(model, (network, tokenization()))


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_engine_loads_a_folder(family: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", family, tie_word_embeddings=True)
    model = Model(engine="text", path=str(folder), text=TextGeneration(kv_cache=100 * BLOCK_BYTES))
    engine = build(model, "cpu:0")
    assert isinstance(engine, TextEngine)
    engine.fetch()
    engine.hold_weights()
    engine.load()
    engine.warm_up()
    assert engine.info().dtype == "float32"
    info = engine.info().text
    assert info is not None
    assert info.context_length == 512
    assert engine.limits().max_batch_size == 32
    assert engine.memory_bytes() > 0
    assert str(folder) in engine.fingerprint()
    expected = text_engine(family, config={"tie_word_embeddings": True})
    assert run_one(engine, request(range(20, 50), 8)) == run_one(expected, request(range(20, 50), 8))


def test_bfloat16_is_computed(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    model = Model(engine="text", path=str(folder), dtype="bfloat16", text=TextGeneration(kv_cache=100 * BLOCK_BYTES))
    engine = load(model)
    assert engine.info().dtype == "bfloat16"
    assert len(run_one(engine, request(range(20, 50), 8))) == 8


def test_folder_without_weights_is_explained(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match=r"cannot be read|not a language model"):
        load(Model(engine="text", path=str(folder)))


def fit(rows: int = 32, network_config: Any = None, **text: Any) -> tuple[int, int]:
    """Return blocks and context length of a tiny model."""
    config = network_config or tiny_model().config
    return fit_cache(Model(engine="text", path="x", text=TextGeneration(**text)), config, torch.float32, _CPU, rows)


def test_context_is_that_of_the_model_and_of_the_cache() -> None:
    assert fit(kv_cache=100 * BLOCK_BYTES) == (100, 512)
    assert fit(kv_cache=10 * BLOCK_BYTES) == (10, 160)
    assert fit(kv_cache=10 * BLOCK_BYTES, context_length=128) == (10, 128)
    assert fit(rows=4) == (4 * 32, 512), "no more than four texts can need"
    with pytest.raises(UnsupportedModel, match=r"context_length \(600\) exceeds that of the model, 512"):
        fit(kv_cache=100 * BLOCK_BYTES, context_length=600)
    with pytest.raises(UnsupportedModel, match=r"text.kv_cache holds 160 tokens.*it needs 1MiB"):
        fit(kv_cache=10 * BLOCK_BYTES, context_length=200)
    with pytest.raises(UnsupportedModel, match=r"text.kv_cache holds 16 tokens.*it needs 1MiB"):
        fit(kv_cache=BLOCK_BYTES)


def test_context_ends_where_texts_would_depend_on_others() -> None:
    """Angles of `longrope` change for the whole batch when one text is longer than the original context."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 64, **factors}
    config = tiny_model(rope_parameters=rope).config
    assert max_context(config) == 64
    assert max_context(tiny_model().config) == 512


def test_precision_on_a_cpu() -> None:
    assert choose_dtype("auto", _CPU) == torch.float32
    assert choose_dtype("bfloat16", _CPU) == torch.bfloat16
