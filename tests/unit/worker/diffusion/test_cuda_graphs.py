"""Padding of batch sizes. `tests/gpu` has the tests that need a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.settings import Model
from tests.support.tiny_diffusion import admit, engine_of, pipeline, request
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
def test_padded_size_less_than_twice_the_passes(passes: int) -> None:
    assert passes <= padded_size(passes) < 2 * passes or passes == 1
    assert padded_size(padded_size(passes)) == padded_size(passes)


def test_few_padded_sizes() -> None:
    assert len({padded_size(passes) for passes in range(1, 65)}) == 10


@pytest.mark.parametrize("guidance", [[3.0, 1.0, 7.5], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
def test_padding_does_not_change_outputs(sd_engine: DiffusionEngine, guidance: list[float]) -> None:
    rows = admit(sd_engine, *(request(seed=n, guidance_scale=scale) for n, scale in enumerate(guidance)))
    recorded: list[int] = []
    family = sd_engine._family

    def watched(samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        assert all(len(tensor) == len(samples) for tensor in (timesteps, *conditions.values()))
        recorded.append(len(samples))
        return family.denoise(samples, timesteps, conditions)

    with torch.inference_mode():
        plain, padded = ForwardPass(watched)(rows), ForwardPass(watched, padded_size)(rows)
    passes = sum(row.passes for row in rows)
    assert recorded == [passes, padded_size(passes)]
    for one, other in zip(plain, padded, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_no_padding_on_cpu(sd_engine: DiffusionEngine) -> None:
    forward = make_forward_pass(
        sd_engine._family, Model(engine="sim", compile="full"), torch.device("cpu"), lambda: False
    )
    assert forward._pad_to is None
