"""What the engine draws for a request, in whatever company, is what the diffusers pipeline draws for it alone.

In float32 on the CPU. The kernels chosen for another batch size round otherwise, so "the same" has bounds: some five
times the worst that was measured (LCM, few steps with strong guidance; the others stay near 1e-6), and a sixtieth of
one level of a picture's 256. Not every request can be held to them: LCM over 34 steps with guidance 7.5 multiplies any
rounding a millionfold, in the pipeline as well, so here every request is a short one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from configs.schedulers import MODEL_DEFAULT, SAMPLERS, names
from tests.tiny_diffusion import admitted, engine_of, finish, pipeline, request
from wire.messages import ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.rows import DiffusionRow

# diffusers' KDPM2 schedulers hand a tensor to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

#: Largest difference of latents, relative to the largest latent.
LATENTS = 3e-5
#: Largest difference of pictures with values in [0, 1].
PICTURE = 6e-5


class Checkpoint:
    """One checkpoint twice: behind the engine, and as the pipeline that diffusers makes of it."""

    def __init__(self, folder: Path, prediction_type: str) -> None:
        pipeline(prediction_type).save_pretrained(folder)
        self.engine: DiffusionEngine = engine_of(folder)
        self.pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        self.pipeline.set_progress_bar_config(disable=True)
        self.shipped = self.pipeline.scheduler

    def alone(self, inputs: ImageInputs, output_type: str = "latent") -> torch.Tensor:
        """What the pipeline makes of this request by itself."""
        self.pipeline.scheduler = self.shipped
        if inputs.scheduler != MODEL_DEFAULT:
            sampler = SAMPLERS[inputs.scheduler]
            self.pipeline.scheduler = getattr(diffusers, sampler.cls).from_config(
                self.shipped.config, **sampler.options
            )
        made: torch.Tensor = self.pipeline(
            inputs.prompt,
            negative_prompt=inputs.negative_prompt,
            width=inputs.width,
            height=inputs.height,
            num_inference_steps=inputs.steps,
            guidance_scale=inputs.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(inputs.seed),
            output_type=output_type,
        ).images
        return made

    @torch.inference_mode()
    def picture(self, latents: torch.Tensor) -> torch.Tensor:
        """The pipeline's own way from latents to `(1, 3, H, W)` in [0, 1]."""
        decoded = self.pipeline.vae.decode(latents / self.pipeline.vae.config.scaling_factor).sample
        picture: torch.Tensor = self.pipeline.image_processor.postprocess(decoded, output_type="pt")
        return picture

    def check(self, row: DiffusionRow) -> None:
        """Hold a finished row to the pipeline: its latents, its picture, and the file that a client gets."""
        assert row.step == row.steps
        latents = self.alone(row.inputs)
        assert float((row.latents - latents).abs().max()) <= LATENTS * float(latents.abs().max())
        picture = self.picture(latents)
        assert float((self.picture(row.latents) - picture).abs().max()) <= PICTURE
        levels = (picture[0].permute(1, 2, 0).numpy() * 255).round()
        assert np.abs(pixels(self.engine.render(row)()) - levels).max() <= 1


def pixels(file: bytes) -> np.ndarray:
    """The picture in a file, as `(H, W, 3)` float levels."""
    return np.asarray(Image.open(io.BytesIO(file)), dtype=np.float32)


@pytest.fixture(scope="module")
def epsilon(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("epsilon"), "epsilon")


@pytest.fixture(scope="module")
def velocity(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("velocity"), "v_prediction")


def run(engine: DiffusionEngine, joining: Sequence[tuple[int, ImageInputs]]) -> list[DiffusionRow]:
    """Step all in one batch; each request joins before the tick of its number and leaves when it is done."""
    rows: list[DiffusionRow] = []
    batch_sizes = []
    tick = 0
    while len(rows) < len(joining) or any(row.step < row.steps for row in rows):
        rows += admitted(engine, *(inputs for at, inputs in joining if at == tick))
        running = [row for row in rows if row.step < row.steps]
        batch_sizes.append(len(running))
        engine.step(running)
        tick += 1
    assert max(batch_sizes) > 1, "these never met"
    return rows


def mixed(scheduler: str) -> list[tuple[int, ImageInputs]]:
    """Four requests that differ in all they can, and when each joins."""
    return [
        (0, request(scheduler=scheduler, steps=10, guidance_scale=7.5, seed=11, negative_prompt="blurred")),
        (0, request(scheduler=scheduler, steps=7, guidance_scale=1.0, seed=12, prompt="zero")),
        (2, request(scheduler=scheduler, steps=6, guidance_scale=3.0, seed=13, prompt="the digit 4 in blue ink")),
        (5, request(scheduler=scheduler, steps=5, guidance_scale=0.0, seed=2**63, prompt="")),
    ]


@pytest.mark.parametrize("scheduler", names())
def test_rows_that_join_at_different_steps_come_out_as_if_alone(epsilon: Checkpoint, scheduler: str) -> None:
    for row in run(epsilon.engine, mixed(scheduler)):
        epsilon.check(row)


def test_every_scheduler_in_one_batch(epsilon: Checkpoint) -> None:
    joining = [
        (n % 5, request(scheduler=name, seed=n, steps=5 + n % 4, guidance_scale=(1.0, 3.0, 7.5)[n % 3]))
        for n, name in enumerate(names())
    ]
    for row in run(epsilon.engine, joining):
        epsilon.check(row)


@pytest.mark.parametrize("scheduler", sorted(set(names()) - {"ipndm"}))
def test_a_model_that_predicts_velocity(velocity: Checkpoint, scheduler: str) -> None:
    for row in run(velocity.engine, mixed(scheduler)[1:3] + mixed("ddim")[:1]):
        velocity.check(row)


def test_a_scheduler_that_knows_no_velocity_is_refused(velocity: Checkpoint) -> None:
    [refused, other] = velocity.engine.admit([(request(scheduler="ipndm"), None), (request(), None)])
    assert isinstance(refused, TaskError)
    assert (refused.kind, "'v_prediction'" in refused.message) == ("invalid", True)
    assert isinstance(other, DiffusionRow)


@pytest.mark.parametrize("scheduler", names())
def test_a_row_alone_is_the_pipelines_to_the_bit(epsilon: Checkpoint, scheduler: str) -> None:
    for guidance in (1.0, 3.0):
        texts = {"prompt": f"one {scheduler} {guidance}", "negative_prompt": f"no {scheduler} {guidance}"}
        for text in texts.values():  # encoded one by one, as the pipeline does
            admitted(epsilon.engine, request(prompt=text, guidance_scale=1.0))
        inputs = request(scheduler=scheduler, guidance_scale=guidance, **texts)
        [row] = admitted(epsilon.engine, inputs)
        finish(epsilon.engine, row)
        assert torch.equal(row.latents, epsilon.alone(inputs))


@pytest.mark.parametrize(("width", "height"), [(32, 48), (72, 40), (8, 24)])
def test_sizes_that_are_not_square_and_multiples_of_8_only(epsilon: Checkpoint, width: int, height: int) -> None:
    sized = [(at, request(width=width, height=height, seed=at, guidance_scale=1.0 + at)) for at in (0, 2)]
    for row in run(epsilon.engine, sized):
        epsilon.check(row)
        assert pixels(epsilon.engine.render(row)()).shape == (height, width, 3)


def test_the_bounds_would_notice_another_seed_or_one_step_more(epsilon: Checkpoint) -> None:
    one = epsilon.alone(request())
    for changed in (request(seed=2), request(steps=7), request(guidance_scale=3.01), request(prompt="a red 7")):
        other = epsilon.alone(changed)
        assert float((one - other).abs().max()) > 5 * LATENTS * float(one.abs().max())
        assert float((epsilon.picture(one) - epsilon.picture(other)).abs().max()) > 3 * PICTURE
