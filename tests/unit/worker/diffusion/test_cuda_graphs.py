"""Padding, compiled passes and the cache of recordings. `tests/gpu` has the tests that need a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.model_settings import Model
from tests.support.tiny_diffusion import admit, engine_of, pipeline, request
from worker.engines.diffusion.compiled_pass import CompiledPass, compile_denoiser
from worker.engines.diffusion.cuda_graphs import MAX_RECORDED_PASSES, CudaGraphCache, make_forward_pass, padded_size
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.families.base import Conditions
from worker.engines.diffusion.forward import DenoiseFn, ForwardPass


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


# ---- compiled passes

#: Width and height: with two sizes of one shape, eight shapes.
SIZES = [(32, 32), (32, 64), (64, 32), (64, 64), (32, 96), (96, 96), (64, 96), (128, 32), (128, 64), (128, 128)]


def step_all(engine: DiffusionEngine, sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    outputs = []
    for width, height in sizes:
        rows = admit(engine, *(request(width=width, height=height, seed=seed) for seed in range(2)))
        engine.step(rows)
        outputs += [row.latents for row in rows]
        for row in rows:
            engine.release(row)
    return outputs


def test_no_size_fails_at_the_recompile_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline().save_pretrained(tmp_path)
    engine = engine_of(tmp_path)
    expected = step_all(engine, SIZES)
    compile_denoiser(engine._family.denoiser, regional=True, backend="eager")
    compiled = CompiledPass(engine._family.denoise)
    engine._forward = ForwardPass(compiled)
    with torch._dynamo.config.patch(recompile_limit=2):
        found = step_all(engine, SIZES) + step_all(engine, SIZES[-1:])
    for one, other in zip(found, expected, strict=False):
        assert torch.allclose(one, other, atol=1e-5)
    warnings = [record.message for record in caplog.records if "run uncompiled: FailOnRecompileLimit" in record.message]
    assert 1 <= len(warnings) == len(set(warnings)), "each shape says so once"
    compiled.seal()
    before = len(compiled._compiled)
    step_all(engine, [(160, 32)])
    assert len(compiled._compiled) == before, "nothing is compiled while requests wait"


# ---- recordings


class Recorder:
    """Makes recordings that take `size` bytes of a device of 8000, and fail as told."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.free = 8000
        self.recorded: list[int] = []
        self.replayed: list[int] = []
        self.error: Exception | None = None

    def __call__(
        self, denoise: DenoiseFn, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> DenoiseFn:
        if self.error is not None:
            raise self.error
        self.recorded.append(len(samples))
        self.free -= self.size

        def replay(samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
            self.replayed.append(len(samples))
            return denoise(samples, timesteps, conditions)

        return replay

    def cache(self, has_loras: Callable[[], bool] = lambda: False) -> CudaGraphCache:
        def denoise(samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
            return samples + timesteps + conditions["text"]

        return CudaGraphCache(denoise, has_loras, self, lambda: (self.free, 8000))


def run_passes(cache: CudaGraphCache, *sizes: int) -> None:
    for passes in sizes:
        samples = torch.ones(passes, 1)
        assert cache(samples, samples, {"text": samples}).sum() == 3 * passes


def test_shapes_are_recorded_once() -> None:
    recorder = Recorder()
    run_passes(recorder.cache(), 1, 2, 1, 2, 2)
    assert (recorder.recorded, recorder.replayed) == ([1, 2], [1, 2, 1, 2, 2])


def test_nothing_is_recorded_while_requests_wait() -> None:
    recorder = Recorder()
    cache = recorder.cache()
    run_passes(cache, 1)
    cache.seal()
    run_passes(cache, 1, 2)
    assert (recorder.recorded, recorder.replayed) == ([1], [1, 1])


def test_large_passes_and_those_with_adapters_are_not_recorded() -> None:
    recorder = Recorder()
    run_passes(recorder.cache(), MAX_RECORDED_PASSES, 2 * MAX_RECORDED_PASSES)
    run_passes(recorder.cache(lambda: True), 1)
    assert recorder.recorded == [MAX_RECORDED_PASSES]


def test_recordings_are_bounded_by_memory() -> None:
    recorder = Recorder(size=600)
    run_passes(recorder.cache(), 1, 2, 3, 4, 1)
    assert recorder.recorded == [1, 2], "an eighth of the memory, and none is dropped for another"


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (torch.OutOfMemoryError("9 GiB"), [1]),
        (torch.AcceleratorError("CUDA error: out of memory"), [1]),
        (RuntimeError("this operation cannot be captured"), []),
        (torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture"), []),
    ],
)
def test_failed_recording_runs_plainly(error: Exception, recorded: list[int]) -> None:
    recorder = Recorder()
    cache = recorder.cache()
    recorder.error = error
    run_passes(cache, 1)
    recorder.error = None
    run_passes(cache, 1)
    assert recorder.recorded == recorded, "out of memory passes, other reasons stay"


def test_lost_device_while_recording_is_raised() -> None:
    recorder = Recorder()
    recorder.error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(torch.AcceleratorError):
        run_passes(recorder.cache(), 1)
