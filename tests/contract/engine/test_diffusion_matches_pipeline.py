"""Contract: `DiffusionEngine` generates what the diffusers pipeline generates for each request alone.

The tests run in float32 on the CPU. Kernels for other batch sizes round differently, so equality has bounds. They are
about five times the largest measured difference (LCM, few steps, strong guidance; others are near 1e-6), and a sixtieth
of one level of 256. All requests are short: LCM over 34 steps with guidance 7.5 amplifies rounding a million times, in
the pipeline as well.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from configs.samplers import SAMPLERS, sampler_names
from tests.support.tiny_diffusion import CHECKPOINTS, admit, engine_of, engine_request, finish, request, run
from wire.inputs import GenerationMode, ImageInputs
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.row import DiffusionRow
from worker.engines.diffusion.sampling.schedulers import scheduler_like

# diffusers' KDPM2 schedulers pass a tensor to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

#: Maximum difference of latents relative to the largest latent.
LATENTS = 3e-5
#: The same for a row that shares no forward pass.
SINGLE_ROW = 5e-6
#: Maximum difference of images with values in [0, 1].
IMAGE_BOUND = 6e-5
#: One name per solver class.
SOLVERS = list({SAMPLERS[name].cls: name for name in reversed(sampler_names("noise")) if name in SAMPLERS}.values())
#: The infix of each mode's pipeline class.
_INFIX: dict[GenerationMode, str] = {"text": "", "image": "Img2Img", "inpaint": "Inpaint"}


class Checkpoint:
    """A checkpoint in the engine and in the diffusers pipelines."""

    def __init__(self, folder: Path, make: Callable[[], Any]) -> None:
        made = make()
        made.save_pretrained(folder)
        self.engine: DiffusionEngine = engine_of(folder)
        # Reload it: loaded weights have the engine's memory layout, and a new scheduler would record which options
        # nobody set.
        missing_parts = {name: None for name, part in made.components.items() if part is None}
        made = type(made).from_pretrained(folder, **missing_parts)
        self.shipped = made.scheduler
        name = type(made).__name__.removesuffix("Pipeline")
        self.pipelines = {mode: _form(made, f"{name}{infix}Pipeline") for mode, infix in _INFIX.items()}

    @property
    def modes(self) -> tuple[GenerationMode, ...]:
        return self.engine.info().modes

    def single(self, inputs: ImageInputs, output_type: str = "latent") -> Any:
        """Return the pipeline's result for this request."""
        pipeline = self.pipelines[inputs.mode]
        pipeline.scheduler = scheduler_like(inputs.scheduler, self.shipped)
        sources = [
            Image.frombytes(mode, (inputs.width, inputs.height), pixels)
            for mode, pixels in zip(("RGB", "L"), engine_request(inputs).sources, strict=False)
        ]
        given = {
            "prompt": inputs.prompt,
            # The pipelines distinguish None from empty; requests do not.
            "negative_prompt": inputs.negative_prompt or None,
            "width": inputs.width,
            "height": inputs.height,
            "num_inference_steps": inputs.steps,
            "guidance_scale": inputs.guidance_scale,
            "generator": torch.Generator("cpu").manual_seed(inputs.seed),
            "output_type": output_type,
            "strength": inputs.strength,
            **dict(zip(("image", "mask_image"), sources, strict=False)),
        }
        if isinstance(self.pipelines["text"], diffusers.FluxPipeline):
            given["max_sequence_length"] = 512 if pipeline.transformer.config.guidance_embeds else 256
        known = inspect.signature(pipeline.__call__).parameters
        return pipeline(**{name: value for name, value in given.items() if name in known}).images

    @torch.inference_mode()
    def image(self, row: DiffusionRow, latents: torch.Tensor) -> torch.Tensor:
        """`(1, 3, H, W)` in [0, 1]."""
        family = self.engine._family
        decoded = family.vae.decode(family.unscale_latents(family.unpack(latents, row.inputs))).sample
        image: torch.Tensor = family.pipeline.image_processor.postprocess(decoded, output_type="pt")
        return image

    def check(self, row: DiffusionRow) -> None:
        """Compare a finished row to the pipeline: latents, image and encoded file."""
        assert row.step == row.steps
        latents = self.single(row.inputs)
        assert row.latents.shape == latents.shape
        assert float((row.latents - latents).abs().max()) <= LATENTS * float(latents.abs().max())
        image = self.image(row, latents)
        assert float((self.image(row, row.latents) - image).abs().max()) <= IMAGE_BOUND
        levels = (image[0].permute(1, 2, 0).numpy() * 255).round()
        assert np.abs(pixels(self.engine.render(row)().data) - levels).max() <= 1


def _form(made: Any, name: str) -> Any:
    """Return the parts as another pipeline class of the family."""
    cls = getattr(diffusers, name)
    options = {"requires_safety_checker": False} if "requires_safety_checker" in made.config else {}
    form = cls(**made.components, **options)
    form.set_progress_bar_config(disable=True)
    return form


def pixels(file: bytes) -> np.ndarray:
    """Return the file's image as `(H, W, 3)` float levels."""
    return np.asarray(Image.open(io.BytesIO(file)), dtype=np.float32)


class CheckpointCache:
    """Checkpoints, created on first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Checkpoint] = {}

    def __getitem__(self, name: str) -> Checkpoint:
        if name not in self._made:
            self._made[name] = Checkpoint(self._folder / name, CHECKPOINTS[name])
        return self._made[name]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> CheckpointCache:
    return CheckpointCache(tmp_path_factory.mktemp("checkpoints"))


def every_mode(modes: tuple[GenerationMode, ...], **changes: Any) -> list[tuple[int, ImageInputs]]:
    """Return requests that differ in every setting, with their joining ticks."""
    different: list[dict[str, Any]] = [
        {"steps": 7, "guidance_scale": 7.5, "prompt": "", "strength": 0.5},
        {"steps": 5, "guidance_scale": 1.0, "prompt": "the digit 4 in blue ink", "strength": 0.85},
        {"steps": 4, "guidance_scale": 3.0, "prompt": "zero", "strength": 1.0},
    ]
    reported = [{"mode": mode} | one | changes for one in different for mode in modes]
    return [(n // 2, request(seed=n, **one)) for n, one in enumerate(reported)]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_all_modes_in_one_batch_equal_pipeline(checkpoints: CheckpointCache, name: str) -> None:
    checkpoint = checkpoints[name]
    for row in run(checkpoint.engine, every_mode(checkpoint.modes)):
        checkpoint.check(row)


@pytest.mark.parametrize("name", sorted(set(CHECKPOINTS) - {"flux-dev", "flux-schnell"}))
def test_negative_prompts(checkpoints: CheckpointCache, name: str) -> None:
    checkpoint = checkpoints[name]
    modes = checkpoint.modes
    joining = every_mode(modes, negative_prompt="blurred")[: 2 * len(modes)] + every_mode(modes)[: len(modes)]
    for row in run(checkpoint.engine, joining):
        checkpoint.check(row)


@pytest.mark.parametrize(("width", "height"), [(32, 48), (80, 16)])
@pytest.mark.parametrize("name", ["sd", "sd-inpaint", "sdxl", "sd3-shifting-without-t5", "flux-dev"])
def test_non_square_sizes(checkpoints: CheckpointCache, name: str, width: int, height: int) -> None:
    checkpoint = checkpoints[name]
    for row in run(checkpoint.engine, every_mode(checkpoint.modes, width=width, height=height)[:3]):
        checkpoint.check(row)
        assert pixels(checkpoint.engine.render(row)().data).shape == (height, width, 3)


@pytest.mark.parametrize("strength", [0.1, 0.34, 0.55, 0.99, 1.0])
@pytest.mark.parametrize("name", ["sd", "sd3", "flux-dev"])
def test_strengths(checkpoints: CheckpointCache, name: str, strength: float) -> None:
    checkpoint = checkpoints[name]
    joining = [(0, request(mode=mode, strength=strength, steps=10)) for mode in ("image", "inpaint")]
    for row in run(checkpoint.engine, joining):
        checkpoint.check(row)


@pytest.mark.parametrize("scheduler", SOLVERS)
def test_every_scheduler_with_rows_of_every_mode(checkpoints: CheckpointCache, scheduler: str) -> None:
    checkpoint = checkpoints["sd"]
    joining = [
        (0, request(scheduler=scheduler, steps=10, guidance_scale=7.5, seed=11, negative_prompt="blurred")),
        (0, request(scheduler=scheduler, steps=7, guidance_scale=1.0, seed=12, mode="image", strength=0.6)),
        (2, request(scheduler=scheduler, steps=6, guidance_scale=3.0, seed=13, mode="inpaint", strength=0.7)),
        (4, request(scheduler=scheduler, steps=5, guidance_scale=0.0, seed=2**63, mode="inpaint", strength=1)),
    ]
    for row in run(checkpoint.engine, joining):
        checkpoint.check(row)


def schedulers_of(name: str) -> list[str]:
    """Return the schedulers that the checkpoint's pipelines support."""
    if name.startswith("sd3"):
        # They draw later noise without a generator, so that it differs each time.
        return [one for one in sampler_names("flow") if not any(word in one for word in ("lcm", "ancestral", "sde"))]
    if name.startswith("flux"):
        # They set the scheduler's steps in a way that few schedulers support.
        return [one for one in sampler_names("flow") if one.startswith("flow_match_euler") and "ancestral" not in one]
    return sampler_names("noise") if name == "sd" else SOLVERS


@pytest.mark.parametrize("name", ["sd", "sd-velocity", "sdxl", "sd3", "flux-dev"])
def test_every_scheduler_in_one_batch(checkpoints: CheckpointCache, name: str) -> None:
    checkpoint = checkpoints[name]
    joining = [
        (n % 5, request(scheduler=scheduler, seed=n, steps=5 + n % 4, guidance_scale=(1.0, 3.0, 7.5)[n % 3]))
        for n, scheduler in enumerate(schedulers_of(name))
    ]
    for row in run(checkpoint.engine, joining):
        checkpoint.check(row)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_single_row_differs_only_by_sampler_rounding(checkpoints: CheckpointCache, name: str) -> None:
    checkpoint = checkpoints[name]
    for mode in checkpoint.modes:
        for guidance in (1.0, 3.0):
            inputs = request(mode=mode, guidance_scale=guidance, prompt=f"one {mode} {guidance}", strength=0.7)
            # The pipeline encodes texts one by one.
            for text in checkpoint.engine._family.texts(inputs):
                admit(checkpoint.engine, request(prompt=text, guidance_scale=1.0, mode=mode))
            [row] = admit(checkpoint.engine, inputs)
            finish(checkpoint.engine, row)
            latents = checkpoint.single(inputs)
            worst = float((row.latents - latents).abs().max()) / float(latents.abs().max())
            assert worst <= SINGLE_ROW, (mode, guidance)


CHANGES: list[dict[str, Any]] = [
    {"seed": 2},
    {"steps": 7},
    {"guidance_scale": 3.01},
    {"prompt": "a red 7"},
    {"negative_prompt": "b"},
    {"strength": 0.5},
    {"mode": "image"},
    {"mode": "text"},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_bounds_detect_other_request(checkpoints: CheckpointCache, change: dict[str, Any]) -> None:
    checkpoint = checkpoints["sd"]
    inputs = request(mode="inpaint", strength=0.8)
    [row] = admit(checkpoint.engine, inputs)
    one, other = checkpoint.single(inputs), checkpoint.single(request(**{"mode": "inpaint", "strength": 0.8} | change))
    assert float((one - other).abs().max()) > 3 * LATENTS * float(one.abs().max())
    assert float((checkpoint.image(row, one) - checkpoint.image(row, other)).abs().max()) > 2 * IMAGE_BOUND
