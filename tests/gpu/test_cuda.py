"""The built-in model on a GPU: batched equals alone, half precision holds, and the loop stays one step ahead."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from configs.load import load
from wire.messages import ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.rows import DiffusionRow

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SAMPLERS = ("ddim", "euler", "euler_ancestral", "dpmpp_2m", "unipc")


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def engine(request: pytest.FixtureRequest) -> DiffusionEngine:
    model = load().models["digits"].model_copy(update={"dtype": request.param})
    made = DiffusionEngine(model, "cuda:0")
    made.load()
    return made


def wanted() -> list[ImageInputs]:
    return [
        ImageInputs("a handwritten seven", 64, 64, 8 + i, (1.0, 3.0, 7.5)[i % 3], i, scheduler)
        for i, scheduler in enumerate(SAMPLERS)
    ]


def draw(engine: DiffusionEngine, inputs: list[ImageInputs]) -> list[NDArray[np.float64]]:
    rows: list[DiffusionRow] = []
    for row in engine.admit([(one, None) for one in inputs]):
        assert not isinstance(row, TaskError), row
        assert isinstance(row, DiffusionRow)
        rows.append(row)
    while live := [row for row in rows if row.step < row.steps]:
        engine.step(live)
    return [np.asarray(Image.open(io.BytesIO(engine.render(row)()))).astype(float) for row in rows]


def test_batched_equals_alone(engine: DiffusionEngine) -> None:
    together = draw(engine, wanted())
    alone = [draw(engine, [one])[0] for one in wanted()]
    # Half precision rounds a thousand times coarser: single pixels at an edge move, the picture does not.
    loose = engine._family.dtype is not torch.float32
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one - other).mean() <= (4.0 if loose else 0.05)
        assert loose or np.abs(one - other).max() <= 2


def test_a_step_waits_for_the_one_before_it(engine: DiffusionEngine) -> None:
    row = engine.admit([(wanted()[0], None)])[0]
    assert isinstance(row, DiffusionRow)
    engine.step([row])
    first = engine._last_step
    engine.step([row])
    assert first is not None
    done = first.query()  # type: ignore[no-untyped-call]
    assert done, "the earlier step is done when the later one has been queued"


def test_the_step_loop_never_waits_for_a_value_from_the_gpu(engine: DiffusionEngine) -> None:
    rows = [row for row in engine.admit([(one, None) for one in wanted()]) if isinstance(row, DiffusionRow)]
    engine.step(rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.step(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
