"""On a GPU: texts in a batch, recorded steps, and the tokens of a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from configs.model_settings import Model
from configs.text_settings import TextGeneration
from tests.support.text_engine import GREEDY, TextDriver, request, run_one, text_engine
from tests.support.text_models import tiny_model, tokenization
from wire.inputs import Sampling
from worker.engines.text.admission import cache_shape
from worker.engines.text.attention import computes_ragged
from worker.engines.text.engine import TextEngine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
_GPU = torch.device("cuda:0")
_TASKS = [
    request([20 + (7 * number + place) % 300 for place in range(5 + 11 * number)], 30, sampling)
    for number, sampling in enumerate(
        [GREEDY, Sampling(1, temperature=0.8), Sampling(2, temperature=1.0, top_p=0.9)] * 4
    )
]


def engine_on_gpu(dtype: Any, family: str = "llama", **config: Any) -> TextEngine:
    settings = TextGeneration(kv_cache=16 << 20, context_length=300, step_tokens=64)
    model = Model(engine="text", path="tiny", dtype=dtype, text=settings)
    network = tiny_model(family, head_dim=64, **config).to(getattr(torch, dtype))
    engine = TextEngine(model, "cuda:0", (network, tokenization()))
    engine.fetch()
    engine.load()
    engine.warm_up()
    return engine


def run_together(engine: Any) -> list[list[int]]:
    driver = TextDriver(engine)
    for number, task in enumerate(_TASKS):
        driver.admit(number, task)
        driver.step()
    driver.run()
    return [driver.tokens(number) for number in range(len(_TASKS))]


@pytest.mark.parametrize("config", [{}, {"sliding_window": 16}], ids=["full", "sliding"])
def test_batch_has_the_tokens_of_a_cpu(config: dict[str, Any]) -> None:
    family = "mistral" if config else "llama"
    expected = text_engine(family, blocks=512, config={"head_dim": 64, **config})
    assert run_together(engine_on_gpu("float32", family, **config)) == [run_one(expected, task) for task in _TASKS]


def test_steps_are_recorded() -> None:
    engine = engine_on_gpu("bfloat16")
    run_together(engine)
    recordings = engine._compute._recordings
    assert recordings is not None
    assert len(recordings._passes) > 1


def test_rows_of_any_lengths_run_at_once() -> None:
    assert computes_ragged(cache_shape(tiny_model(head_dim=64).config), torch.bfloat16, _GPU)
