"""Sections of one model's settings. The docstring of a field is its documentation."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from configs.samplers import canonical_sampler, sampler_names
from configs.section_base import PositiveSeconds, Seconds, Section


def _known_scheduler(value: str) -> str:
    known = canonical_sampler(value)
    if known is None:
        raise ValueError(f"unknown scheduler; allowed: {', '.join(sampler_names())}")
    return known


def _size(value: str) -> str:
    if not re.fullmatch(r"[1-9]\d{1,4}x[1-9]\d{1,4}", value):
        raise ValueError("must be WIDTHxHEIGHT in pixels, such as 512x512")
    if any(int(side) % 8 for side in value.split("x")):
        raise ValueError("width and height must be multiples of 8")
    return value


class Batching(Section):
    """Batching in a worker."""

    mode: Literal["step", "grouped"] = "step"
    """`step`: requests join and leave a batch between denoising steps. `grouped`: a batch runs to its end."""
    window_s: Seconds = 0.3
    """`grouped` only: time that the first request of a batch waits for others."""
    min_gain: float = Field(default=0.05, ge=0, lt=1)
    """`max_batch_size: auto`: minimum gain in images per second, as a fraction, for which a larger batch is used."""
    max_step_s: PositiveSeconds | None = None
    """Maximum duration of a step, which limits how long a new request waits to join the batch. Default: no limit."""
    batch_wait_ms: Annotated[float, Field(ge=0, le=60_000)] | None = None
    """Time that an incomplete batch waits for more calls while nothing runs, in milliseconds. Default: what the
    engine's class says, or 0."""
    checkpoint_every: Annotated[int, Field(ge=1)] | Literal["auto", "never"] = "auto"
    """Steps between two checkpoints of a task, from which it resumes after its worker died. `auto`: about 2 s."""


class WarmUp(Section):
    """Measurements of a worker before its first request."""

    sizes: tuple[Annotated[str, AfterValidator(_size)], ...] = ()
    """Image sizes to measure in addition to the default one. Other sizes are measured while they run."""
    measure_s: Seconds = 10.0
    """Time limit per size for measuring steps of 1 to 32 tasks. Results are stored in `data_dir`.

    Batches that it leaves out are measured while they run."""
    prepare_s: Seconds = 300.0
    """With `compile`: time limit for compiling and recording steps of all batches before the first request, beside
    `measure_s`. Shapes that it leaves out, and sizes not listed in `sizes`, run uncompiled."""


class Defaults(Section):
    """Default values of request parameters. Unset ones are those of the pipeline's class and checkpoint."""

    size: Annotated[str, AfterValidator(_size)] | None = None
    """WIDTHxHEIGHT in pixels."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Number of denoising steps."""
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    """Classifier-free guidance. At 1 or below it is off, which halves the work."""
    scheduler: Annotated[str, AfterValidator(_known_scheduler)] = "default"
    """Name of the sampler. `default`: the checkpoint's own."""
    strength: float = Field(default=0.8, gt=0, le=1)
    """With a source image: how far the result may differ from it; 1 ignores it."""

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height of `size`, which must be set."""
        assert self.size is not None
        width, height = map(int, self.size.split("x"))
        return width, height


class Quality(Section):
    """Settings of requests that ask for a quality. Unset ones are the model's defaults."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Number of denoising steps."""
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    """Classifier-free guidance."""
    scheduler: Annotated[str, AfterValidator(_known_scheduler)] | None = None
    """Name of the sampler."""


class Limits(Section):
    """Limits of request parameters."""

    max_steps: int = Field(default=150, ge=1, le=1000)
    """Maximum number of denoising steps."""
    max_pixels: int = Field(default=1024 * 1024, ge=64, le=1 << 27)
    """Maximum number of pixels, width x height."""
    min_side: int = Field(default=64, ge=8)
    """Minimum length of a side in pixels."""
    max_guidance_scale: float = Field(default=50.0, ge=1)
    """Maximum guidance scale."""
    max_source_pixels: int = Field(default=25_000_000, ge=64, le=1 << 30)
    """Maximum number of pixels of an uploaded image, before it is scaled."""
    max_source_side: int = Field(default=16_384, ge=8, le=1 << 20)
    """Maximum length of a side of an uploaded image in pixels, before it is scaled."""
    max_loras: int = Field(default=4, ge=0)
    """Maximum number of LoRA adapters per request."""
    max_lora_scale: float = Field(default=4.0, gt=0)
    """Maximum absolute scale of an adapter."""

    @model_validator(mode="after")
    def _some_size_is_allowed(self) -> Limits:
        if self.min_side**2 > self.max_pixels:
            raise ValueError(
                f"min_side ({self.min_side}) squared must not exceed max_pixels ({self.max_pixels}), "
                "or no size would be allowed"
            )
        return self


class Sim(Section):
    """A simulated accelerator, on which a step of b tasks takes t0_s + t1_s * b seconds."""

    task: Literal["image", "call", "text"] = "image"
    """`image`: generate images. `call`: return the values of each call as they are, after one step. `text`: generate
    words, one per step."""
    t0_s: Seconds = 0.008
    """Duration of a step independent of the batch size."""
    t1_s: Seconds = 0.003
    """Additional duration of a step per task."""
    prompt_token_s: Seconds = 0.0
    """Additional duration of a step per token of a prompt that it computes."""
    pixels: int | None = Field(default=None, ge=1)
    """Pixels of an image whose steps take this time; those of other sizes take time in proportion. Default: steps of
    all sizes take the same time."""
    asynchronous: bool = False
    """The accelerator works behind the worker, as a GPU does: a step is queued, and the worker waits for the step
    before it."""
    load_s: Seconds = 0.5
    """Duration of reading the weights. A standby worker has done this already."""
    activate_s: Seconds = 0.0
    """Duration of copying the weights to the device."""
    fail_prompt: str = "sim:fail"
    """A prompt with this text fails, without effect on other tasks."""
    crash_prompt: str = "sim:crash"
    """A prompt with this text kills the worker process."""
    nan_prompt: str = "sim:nan"
    """A prompt with this text produces an invalid image (NaN)."""
    flag_prompt: str = "sim:flag"
    """A prompt with this text produces an image that the safety checker flags (see `safety_checker`)."""
    truncate_prompt: str = "sim:truncate"
    """A prompt with this text counts as not read: all its characters are truncated tokens."""
    stuck_prompt: str = "sim:stuck"
    """A prompt with this text causes a step that never completes."""
    device_prompt: str = "sim:device"
    """A prompt with this text makes the device unusable."""
    memory_tasks: int | None = Field(default=None, ge=0)
    """A step with more tasks runs out of memory. Default: never."""
