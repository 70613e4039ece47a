"""From what a client asked to tasks with nothing left open: defaults filled in, bounds checked, seeds dealt out.

Everything that can be wrong with a request is found here or in `schemas`, before anything is queued.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar

import msgspec

from configs.samplers import canonical_sampler, sampler_names
from configs.settings import Limits, Model, Settings
from loadbalancer.access.api_keys import Caller
from loadbalancer.generation.source_images import Size, SourceImages
from loadbalancer.schema.errors import InvalidRequest, ModelNotFound
from loadbalancer.schema.parsing import shorten
from loadbalancer.schema.requests import (
    SEEDS,
    BaseImageRequest,
    EditRequest,
    ImageRequest,
    LoraRequest,
    OpenAIImageRequest,
    PredictRequest,
)
from wire.messages import LORA_NAME, EngineInfo, GenerationMode, ImageFormat, ImageInputs, Lora

Number = TypeVar("Number", int, float)
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_FROM: dict[GenerationMode, str] = {"text": "text alone", "image": "a picture", "inpaint": "a picture with a mask"}


@dataclass(frozen=True, slots=True)
class ModelCapabilities:
    """What is known of a model beside its configuration: its engine, once one is connected, and its adapters."""

    about: EngineInfo | None = None
    loras: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """One request, ready for the queue: a task per item of `inputs`, all alike but for their seeds."""

    model: str
    inputs: list[ImageInputs]
    timeout_s: float
    priority: int
    #: Pixels of the source pictures, the same for all.
    sources: Sequence[bytes] = ()
    #: The API key that it came with, and that key's share of the workers' time.
    owner: str = "anonymous"
    weight: float = 1.0
    #: It was counted as an arrival when another server was asked to do it.
    already_counted: bool = False

    def for_caller(self, caller: Caller) -> GenerationSpec:
        return replace(self, owner=caller.owner, weight=caller.weight)

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT."""
        return f"{self.inputs[0].width}x{self.inputs[0].height}"

    @property
    def output_format(self) -> ImageFormat:
        """The file format of its images."""
        return self.inputs[0].output_format


def resolve_images(
    asked: ImageRequest | EditRequest, settings: Settings, random_seed: int, known: ModelCapabilities
) -> GenerationSpec:
    """The job of `POST /v1/images/*`. Raises `InvalidRequest` and `ModelNotFound`.

    Where the request brings a picture, this is all but the picture: `with_sources` makes it whole.
    """
    n = _bounded("n", asked.n, 1, 1, settings.server.max_n)
    output_format = asked.output_format or "png"
    quality = 100 if asked.output_compression is None else asked.output_compression
    if output_format == "png" and quality != 100:
        _refuse("output_compression", quality, "Only 100 goes with output_format 'png', which is lossless")
    if asked.partial_images and not asked.stream:
        _refuse("partial_images", asked.partial_images, "Previews need stream: true")
    if not asked.has_source_image and asked.strength is not None:
        _refuse("strength", asked.strength, "It needs a source picture in 'image'")
    if isinstance(asked, ImageRequest) and asked.mask is not None and not asked.has_source_image:
        raise InvalidRequest("Invalid value for 'mask': It needs a source picture in 'image'.", param="mask")
    return _resolve(
        asked,
        settings,
        random_seed,
        known,
        n=n,
        output_format=output_format,
        output_quality=quality,
        partial_images=asked.partial_images or 0,
    )


def resolve_predict(
    asked: PredictRequest, settings: Settings, random_seed: int, known: ModelCapabilities
) -> GenerationSpec:
    """The job of `POST /predict`. Raises `InvalidRequest` and `ModelNotFound`."""
    return _resolve(asked, settings, random_seed, known)


def requested_size(asked: OpenAIImageRequest, job: GenerationSpec) -> Size | None:
    """The size that the request names; None where its picture is to decide."""
    return None if asked.size in (None, "auto") else (job.inputs[0].width, job.inputs[0].height)


def with_source_images(
    job: GenerationSpec, sources: SourceImages, asked: OpenAIImageRequest, settings: Settings, known: ModelCapabilities
) -> GenerationSpec:
    """The job with its pictures. Raises `InvalidRequest` where the engine cannot draw from them."""
    _check_mode(sources.mode, job.model, known)
    default = 1.0 if sources.mode == "inpaint" else settings.models[job.model].defaults.strength
    strength = default if asked.strength is None else asked.strength
    steps = job.inputs[0].steps
    if int(steps * strength) < 1:
        _refuse("strength", strength, f"Of {steps} steps it leaves none")
    size = {"width": sources.width, "height": sources.height}
    inputs = [msgspec.structs.replace(each, mode=sources.mode, strength=strength, **size) for each in job.inputs]
    return replace(job, inputs=inputs, sources=sources.frames)


def _check_mode(mode: GenerationMode, model: str, known: ModelCapabilities) -> None:
    if known.about is None or mode in known.about.modes:
        return
    draws = " or ".join(_FROM[each] for each in known.about.modes)
    raise InvalidRequest(f"The model '{model}' cannot draw from {_FROM[mode]}, but from {draws}.", param="image")


def _resolve(
    asked: BaseImageRequest,
    settings: Settings,
    random_seed: int,
    known: ModelCapabilities,
    *,
    n: int = 1,
    output_format: ImageFormat = "png",
    output_quality: int = 100,
    partial_images: int = 0,
) -> GenerationSpec:
    name = resolve_model(asked.model, settings)
    model = settings.models[name]
    server, limits, defaults = settings.server, model.limits, model.defaults
    prompt = _text("prompt", asked.prompt, server.max_prompt_chars)
    if not prompt.strip():
        _refuse("prompt", prompt, "Must not be empty")
    if not asked.has_source_image:
        _check_mode("text", name, known)
    width, height = _size(asked.size, defaults.size, limits)
    steps = _bounded("num_inference_steps", asked.num_inference_steps, defaults.steps, 1, limits.max_steps)
    guidance = _bounded("guidance_scale", asked.guidance_scale, defaults.guidance_scale, 0, limits.max_guidance_scale)
    timeout_s = _bounded("timeout_s", asked.timeout_s, server.timeout_s, 0, server.max_timeout_s)
    seed = random_seed if asked.seed is None else asked.seed
    inputs = ImageInputs(
        prompt=prompt,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance,
        seed=seed,
        scheduler=_scheduler(asked.scheduler, defaults.scheduler),
        negative_prompt=_text("negative_prompt", asked.negative_prompt or "", server.max_prompt_chars),
        output_format=output_format,
        output_quality=output_quality,
        partial_images=partial_images,
        loras=_loras(asked.loras or (), model, known),
        reproducible=_reproducible(asked.reproducible, model, known),
    )
    each = [msgspec.structs.replace(inputs, seed=(seed + i) % SEEDS) for i in range(n)]
    return GenerationSpec(name, each, timeout_s, asked.priority or 0)


def _loras(asked: Sequence[LoraRequest], model: Model, known: ModelCapabilities) -> tuple[Lora, ...]:
    """The adapters by name, each of the model's own folder."""
    limits = model.limits
    if asked and (model.loras is None or (known.about is not None and not known.about.loras)):
        raise InvalidRequest("The model takes no LoRA adapters.", param="loras")
    if len(asked) > limits.max_loras:
        raise InvalidRequest(
            f"{len(asked)} adapters are asked for; at most {limits.max_loras} are allowed.", param="loras"
        )
    chosen: dict[str, Lora] = {}
    for i, lora in enumerate(asked):
        if not LORA_NAME.fullmatch(lora.name):
            _refuse(f"loras[{i}].name", lora.name, "Must be 1 to 128 letters, digits, '.', '_' and '-', no sign first")
        if lora.name not in known.loras:
            _refuse(f"loras[{i}].name", lora.name, "The model has no such adapter; GET /v1/models/{model} lists them")
        if lora.name in chosen:
            _refuse(f"loras[{i}].name", lora.name, "It is named twice")
        most = limits.max_lora_scale
        scale = _bounded(f"loras[{i}].scale", lora.scale, 1.0, -most, most)
        chosen[lora.name] = Lora(lora.name, scale)
    return tuple(chosen.values())


def _reproducible(asked: bool | None, model: Model, known: ModelCapabilities) -> bool:
    if asked and known.about is not None and not known.about.reproducible:
        _refuse("reproducible", asked, f"The model's engine ({known.about.pipeline}) cannot promise equal bytes")
    return bool(asked) or model.reproducible


def resolve_model(asked: str | None, settings: Settings) -> str:
    """The name of the model that a request means: the first, where it names none. Raises `ModelNotFound`."""
    name = next(iter(settings.models)) if asked is None else asked
    if name not in settings.models:
        raise model_not_found(name, settings)
    return name


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
    known = default if asked is None else canonical_sampler(asked)
    if known is None:
        _refuse("scheduler", asked, f"Supported: {', '.join(sampler_names())}")
    return known


def _bounded(param: str, asked: Number | None, default: Number, least: float, most: Number) -> Number:
    if asked is None:
        return default
    if not least <= asked <= most:
        _refuse(param, asked, f"Must be between {least} and {most}")
    return asked


def _refuse(param: str, value: object, allowed: str) -> NoReturn:
    raise InvalidRequest(f"Invalid value for '{param}': {shorten(value)}. {allowed}.", param=param)
