"""Images that are prepared in another thread: equal results, whatever the loop does meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from tests.support.tiny_diffusion import admit, engine_of, engine_request, finish, pipeline, request
from tests.support.tiny_loras import save_two
from tests.support.tiny_pipelines import admit as admit_generic
from tests.support.tiny_pipelines import engine_of as generic_engine_of
from tests.support.tiny_pipelines import finish as finish_generic
from tests.support.tiny_pipelines import model_of
from tests.support.tiny_pipelines import request as generic_request
from wire.inputs import ImageInputs, Lora
from worker.engine import EngineRequest, TaskError
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.generic.row import GenericRow

INK, WET = Lora("ink"), Lora("wet.v1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    pipeline().save_pretrained(folder / "model")
    save_two(folder)
    return folder


@pytest.fixture
def engine(folder: Path) -> DiffusionEngine:
    return engine_of(folder / "model", loras=folder)


def prepared(engine: DiffusionEngine, task: EngineRequest) -> EngineRequest:
    """Prepare the task in another thread, as the loop does."""
    with ThreadPoolExecutor(1) as pool:
        return replace(task, prepared=pool.submit(engine.prepare, task).result())


def latents(engine: DiffusionEngine, task: EngineRequest) -> torch.Tensor:
    [row] = admit(engine, task)
    finish(engine, row)
    engine.release(row)
    return row.latents


@pytest.mark.parametrize("mode", ["text", "image", "inpaint"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral", "kdpm2"])
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_prepared_images_are_equal(engine: DiffusionEngine, folder: Path, mode: Any, scheduler: str) -> None:
    task = engine_request(request(mode=mode, scheduler=scheduler, strength=0.8))
    assert engine.needs_preparation(task)
    ready = prepared(engine, task)
    assert ready.prepared is not None
    assert torch.equal(latents(engine, ready), latents(engine_of(folder / "model"), task))
    assert torch.equal(latents(engine, ready), latents(engine, task)), "an admission changes nothing that was prepared"


def test_what_is_in_the_caches_needs_no_preparation(engine: DiffusionEngine) -> None:
    task = engine_request(request())
    latents(engine, task)
    assert not engine.needs_preparation(task)
    assert engine.needs_preparation(engine_request(request(prompt="another one")))
    # Plans are shared by all engines of a process. No other test has asked for so many steps.
    assert engine.needs_preparation(engine_request(request(steps=89))), "the sampler has no plan yet"
    assert engine.needs_preparation(engine_request(request(loras=(INK,))))


@pytest.mark.parametrize("lora", [INK, WET])
def test_adapters_are_read_beside_the_steps(engine: DiffusionEngine, folder: Path, lora: Lora) -> None:
    task = engine_request(request(loras=(lora,)))
    assert prepared(engine, task).prepared is None, "its layers are put into the model between two steps"
    expected = latents(engine_of(folder / "model", loras=folder), task)
    assert torch.equal(latents(engine, task), expected)
    [row] = admit(engine, task)
    assert prepared(engine, task).prepared is not None, "they are in the model, and so are the texts"
    assert torch.equal(latents(engine, prepared(engine, task)), expected)
    engine.release(row)


def test_only_encoders_with_adapters_are_left_to_the_loop(engine: DiffusionEngine) -> None:
    for lora, is_prepared in ((INK, True), (WET, False)):
        latents(engine, engine_request(request(loras=(lora,))))
        new = engine_request(request(loras=(lora,), prompt="another one"))
        assert (prepared(engine, new).prepared is not None) == is_prepared


def test_preparation_during_a_step_with_adapters(engine: DiffusionEngine, folder: Path) -> None:
    """The adapters of the images that run are not in the encoders that prepare others."""
    plain = engine_request(request(prompt="a plain one"))
    found: list[EngineRequest] = []
    rows = admit(engine, request(loras=(WET,)))

    def prepare_now(*given: Any) -> None:
        if not found:
            found.append(prepared(engine, plain))

    hook = engine._family.denoiser.register_forward_pre_hook(prepare_now)
    finish(engine, *rows)
    hook.remove()
    alone = engine_of(folder / "model", loras=folder)
    assert torch.equal(latents(engine, found[0]), latents(alone, plain))
    assert torch.equal(rows[0].latents, latents(alone, engine_request(request(loras=(WET,)))))


@pytest.mark.parametrize(
    "bad", [request(width=12), request(loras=(Lora("nowhere"),)), request(mode="image", strength=0.01)]
)
def test_errors_are_those_of_the_admission(engine: DiffusionEngine, bad: ImageInputs) -> None:
    task = engine_request(bad)
    if engine.needs_preparation(task):
        try:
            task = prepared(engine, task)
        except TaskError:
            assert task.prepared is None
    [answer] = engine.admit([task])
    assert isinstance(answer, TaskError)
    assert answer.kind == "invalid"


def test_a_pipeline_of_any_kind_runs_to_its_first_call(tmp_path: Path) -> None:
    engine = generic_engine_of(model_of("text", tmp_path))
    task = EngineRequest(generic_request(seed=4))
    assert engine.needs_preparation(task)
    with ThreadPoolExecutor(1) as pool:
        ready = [pool.submit(engine.prepare, task).result() for _ in range(2)]
    assert all(isinstance(row, GenericRow) for row in ready)
    engine.discard(ready[1])
    [row] = engine.admit([replace(task, prepared=ready[0])])
    [again] = engine.admit([replace(task, prepared=ready[1])])
    assert row is ready[0]
    assert again is not ready[1], "it was discarded"
    [plain] = admit_generic(engine, task.image)
    images = []
    for each in (row, again, plain):
        assert isinstance(each, GenericRow)
        finish_generic(engine, each)
        assert each.step == each.steps
        images.append(engine.render(each)().data)
    assert images == [images[0]] * 3
