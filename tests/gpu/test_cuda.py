"""On a GPU: batched results, half precision, and no synchronization in a step."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from configs.load import load
from configs.model_sections import Defaults
from configs.model_settings import Model
from tests.support.tiny_diffusion import CHECKPOINTS, SIZE, admit, engine_request, finish, request
from wire.inputs import GenerationMode, ImageInputs
from worker.engine import EngineRequest
from worker.engines.diffusion.engine import DiffusionEngine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SAMPLERS = ("ddim", "euler", "euler_ancestral", "dpmpp_2m", "unipc")
MODES: tuple[GenerationMode, ...] = ("text", "image", "inpaint")


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def engine(request: pytest.FixtureRequest) -> DiffusionEngine:
    model = load().models["digits"].model_copy(update={"dtype": request.param})
    made = DiffusionEngine(model, "cuda:0")
    made.load()
    return made


def digits() -> list[ImageInputs]:
    return [
        ImageInputs(
            "a handwritten seven", 64, 64, 8 + n, (1.0, 3.0, 7.5)[n % 3], n, scheduler, mode=MODES[n % 3], strength=0.8
        )
        for n, scheduler in enumerate(SAMPLERS)
    ]


def draw(engine: DiffusionEngine, asked: list[ImageInputs]) -> list[NDArray[np.float64]]:
    rows = admit(engine, *asked)
    finish(engine, *rows)
    return [np.asarray(Image.open(io.BytesIO(engine.render(row)().data))).astype(float) for row in rows]


def test_batched_equals_single(engine: DiffusionEngine) -> None:
    batched = draw(engine, digits())
    single = [draw(engine, [one])[0] for one in digits()]
    # Half precision rounds a thousand times coarser: single edge pixels change, the image does not.
    loose = engine._family.dtype is not torch.float32
    for one, other in zip(batched, single, strict=True):
        assert np.abs(one - other).mean() <= (4.0 if loose else 0.05)
        assert loose or np.abs(one - other).max() <= 2


def test_step_waits_for_previous_step(engine: DiffusionEngine) -> None:
    [row] = admit(engine, digits()[0])
    engine.step([row])
    first = engine._completion.event
    engine.step([row])
    assert first is not None
    done = first.query()  # type: ignore[no-untyped-call]
    assert done, "the earlier step is done when the later one has been queued"


def test_resumed_row_bit_equal(engine: DiffusionEngine) -> None:
    for asked in digits():
        task = engine_request(asked)
        [row] = admit(engine, task)
        for _ in range(3):
            engine.step([row])
        checkpoint = engine.save(row)
        finish(engine, row)
        [resumed] = admit(engine, EngineRequest(task.inputs, task.sources, checkpoint()))
        finish(engine, resumed)
        assert torch.equal(resumed.latents, row.latents), (asked.scheduler, asked.mode)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_step_does_not_synchronize_with_gpu(name: str, tmp_path: Path) -> None:
    CHECKPOINTS[name]().save_pretrained(tmp_path)
    engine = DiffusionEngine(Model(path=str(tmp_path), defaults=Defaults(size=f"{SIZE}x{SIZE}", steps=4)), "cuda:0")
    engine.load()
    modes = engine.info().modes
    asked: list[dict[str, Any]] = [{"mode": modes[n % len(modes)], "seed": n, "steps": 5 + n} for n in range(6)]
    rows = admit(engine, *(request(**one) for one in asked))
    engine.step(rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.step(rows)
        later = [engine.render(row) for row in rows]
        saved = [engine.save(row) for row in rows]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    finish(engine, *rows)
    assert all(image().data for image in later)
    assert all(checkpoint().step == 2 for checkpoint in saved)


@pytest.mark.parametrize("way", ["graphs", "regional", "full"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_compiled_forward_pass_equals_eager(
    name: str, way: Literal["graphs", "regional", "full"], tmp_path: Path
) -> None:
    CHECKPOINTS[name]().save_pretrained(tmp_path)
    model = Model(path=str(tmp_path), dtype="float32", defaults=Defaults(size=f"{SIZE}x{SIZE}", steps=4))
    plain = DiffusionEngine(model, "cuda:0")
    recorded = DiffusionEngine(model.model_copy(update={"compile": way}), "cuda:0")
    for engine in (plain, recorded):
        engine.load()
    modes = plain.info().modes
    # Different lengths: batches of seven sizes are padded, captured and reused.
    asked = [request(mode=modes[n % len(modes)], seed=n, steps=4 + n) for n in range(7)]
    for one, other in zip(draw(plain, asked), draw(recorded, asked), strict=True):
        assert np.abs(one - other).max() <= 2
    again = draw(recorded, asked)
    assert all(np.array_equal(one, other) for one, other in zip(draw(recorded, asked), again, strict=True))


@pytest.mark.parametrize("compiled", ["off", "graphs"])
def test_reproducible_bytes_equal_in_any_batch(compiled: Literal["off", "graphs"]) -> None:
    engine = DiffusionEngine(load().models["digits"].model_copy(update={"compile": compiled}), "cuda:0")
    engine.load()
    asked = [msgspec.structs.replace(one, reproducible=True) for one in digits()]
    batched = draw(engine, asked)
    for one, other in zip(asked, batched, strict=True):
        assert np.array_equal(draw(engine, [one])[0], other), one.scheduler
