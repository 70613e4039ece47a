"""From what a client asked to tasks with nothing left open: defaults filled in, bounds checked, seeds dealt out.

Everything that can be wrong with a request is found here or in `schemas`, before anything is queued.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from configs.schedulers import canonical, names
from configs.schema import Limits, Model, Settings
from loadbalancer.errors import InvalidRequest, ModelNotFound
from loadbalancer.schemas import SEEDS, Drawing, ImageRequest, PredictRequest, shorten
from wire.messages import ImageFormat, ImageInputs

Number = TypeVar("Number", int, float)
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


@dataclass(frozen=True, slots=True)
class Job:
    """One request, ready for the queue: a task per item of `inputs`, all alike but for their seeds."""

    model: str
    inputs: list[ImageInputs]
    timeout_s: float
    priority: int

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT."""
        return f"{self.inputs[0].width}x{self.inputs[0].height}"

    @property
    def output_format(self) -> ImageFormat:
        """The file format of its images."""
        return self.inputs[0].output_format


def admit_images(asked: ImageRequest, settings: Settings, random_seed: int) -> Job:
    """The job of `POST /v1/images/generations`. Raises `InvalidRequest` and `ModelNotFound`."""
    n = _within("n", asked.n, 1, 1, settings.server.max_n)
    output_format = asked.output_format or "png"
    quality = 100 if asked.output_compression is None else asked.output_compression
    if output_format == "png" and quality != 100:
        _refuse("output_compression", quality, "Only 100 goes with output_format 'png', which is lossless")
    if asked.partial_images and not asked.stream:
        _refuse("partial_images", asked.partial_images, "Previews need stream: true")
    return _admit(
        asked,
        settings,
        random_seed,
        n=n,
        output_format=output_format,
        output_quality=quality,
        partial_images=asked.partial_images or 0,
    )


def admit_predict(asked: PredictRequest, settings: Settings, random_seed: int) -> Job:
    """The job of `POST /predict`. Raises `InvalidRequest` and `ModelNotFound`."""
    return _admit(asked, settings, random_seed)


def _admit(
    asked: Drawing,
    settings: Settings,
    random_seed: int,
    *,
    n: int = 1,
    output_format: ImageFormat = "png",
    output_quality: int = 100,
    partial_images: int = 0,
) -> Job:
    name, model = _model(asked.model, settings)
    server, limits, defaults = settings.server, model.limits, model.defaults
    prompt = _text("prompt", asked.prompt, server.max_prompt_chars)
    if not prompt.strip():
        _refuse("prompt", prompt, "Must not be empty")
    negative_prompt = _text("negative_prompt", asked.negative_prompt or "", server.max_prompt_chars)
    width, height = _size(asked.size, defaults.size, limits)
    steps = _within("num_inference_steps", asked.num_inference_steps, defaults.steps, 1, limits.max_steps)
    guidance = _within("guidance_scale", asked.guidance_scale, defaults.guidance_scale, 0, limits.max_guidance_scale)
    timeout_s = _within("timeout_s", asked.timeout_s, server.timeout_s, 0, server.max_timeout_s)
    scheduler = _scheduler(asked.scheduler, defaults.scheduler)
    seed = random_seed if asked.seed is None else asked.seed
    inputs = [
        ImageInputs(
            prompt=prompt,
            width=width,
            height=height,
            steps=steps,
            guidance_scale=guidance,
            seed=(seed + i) % SEEDS,
            scheduler=scheduler,
            negative_prompt=negative_prompt,
            output_format=output_format,
            output_quality=output_quality,
            partial_images=partial_images,
        )
        for i in range(n)
    ]
    return Job(name, inputs, timeout_s, asked.priority or 0)


def _model(asked: str | None, settings: Settings) -> tuple[str, Model]:
    name = next(iter(settings.models)) if asked is None else asked
    if name not in settings.models:
        raise model_not_found(name, settings)
    return name, settings.models[name]


def model_not_found(name: str, settings: Settings) -> ModelNotFound:
    """What a client is told that asks for a model that is not served."""
    served = ", ".join(f"'{model}'" for model in settings.models)
    return ModelNotFound(f"The model {shorten(name)} does not exist. Served: {served}.", param="model")


def _text(param: str, text: str, most: int) -> str:
    if len(text) > most:
        _refuse(param, text, f"It has {len(text)} characters; at most {most} are allowed")
    return text


def _size(asked: str | None, default: str, limits: Limits) -> tuple[int, int]:
    """Width and height in pixels."""
    match = _SIZE.fullmatch(default if asked in (None, "auto") else asked)
    if match is None:
        _refuse("size", asked, "Must be 'auto' or WIDTHxHEIGHT in pixels, such as '512x512'")
    width, height = int(match[1]), int(match[2])
    if width % 8 or height % 8:
        _refuse("size", asked, "Width and height must be multiples of 8")
    if min(width, height) < limits.min_side:
        _refuse("size", asked, f"Width and height must be at least {limits.min_side}")
    if width * height > limits.max_pixels:
        _refuse("size", asked, f"It has {width * height} pixels; at most {limits.max_pixels} are allowed")
    return width, height


def _scheduler(asked: str | None, default: str) -> str:
    known = default if asked is None else canonical(asked)
    if known is None:
        _refuse("scheduler", asked, f"Supported: {', '.join(names())}")
    return known


def _within(param: str, asked: Number | None, default: Number, least: int, most: Number) -> Number:
    if asked is None:
        return default
    if not least <= asked <= most:
        _refuse(param, asked, f"Must be between {least} and {most}")
    return asked


def _refuse(param: str, value: object, allowed: str) -> NoReturn:
    raise InvalidRequest(f"Invalid value for '{param}': {shorten(value)}. {allowed}.", param=param)
