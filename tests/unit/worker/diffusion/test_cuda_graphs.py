"""Batches padded to few sizes; what needs a GPU for it is in `tests/gpu`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.settings import Model
from tests.support.tiny_diffusion import admitted, engine_of, pipeline, request
from worker.engines.diffusion.cuda_graphs import make_forward_pass, padded_size
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.families.base import Conditions
from worker.engines.diffusion.forward import ForwardPass


@pytest.fixture(scope="module")
def sd_engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    folder = tmp_path_factory.mktemp("tiny")
    pipeline().save_pretrained(folder)
    return engine_of(folder)


@given(st.integers(1, 5000))
def test_a_bucket_holds_its_passes_and_wastes_less_than_half(passes: int) -> None:
    assert passes <= padded_size(passes) < 2 * passes or passes == 1
    assert padded_size(padded_size(passes)) == padded_size(passes)


def test_there_are_few_buckets() -> None:
    assert len({padded_size(passes) for passes in range(1, 65)}) == 10


@pytest.mark.parametrize("guidance", [[3.0, 1.0, 7.5], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
def test_padding_changes_no_output(sd_engine: DiffusionEngine, guidance: list[float]) -> None:
    rows = admitted(sd_engine, *(request(seed=n, guidance_scale=scale) for n, scale in enumerate(guidance)))
    seen: list[int] = []
    family = sd_engine._family

    def watched(samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        assert all(len(tensor) == len(samples) for tensor in (timesteps, *conditions.values()))
        seen.append(len(samples))
        return family.denoise(samples, timesteps, conditions)

    with torch.inference_mode():
        plain, padded = ForwardPass(watched)(rows), ForwardPass(watched, padded_size)(rows)
    passes = sum(row.passes for row in rows)
    assert seen == [passes, padded_size(passes)]
    for one, other in zip(plain, padded, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_without_a_gpu_nothing_is_padded(sd_engine: DiffusionEngine) -> None:
    forward = make_forward_pass(sd_engine._family, Model(compile="full"), torch.device("cpu"), lambda: False)
    assert forward._pad_to is None
