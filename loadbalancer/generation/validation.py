"""Resolves a parsed image request into a complete specification: applies defaults, checks bounds, assigns seeds.

Together with `schema`, it finds every error of a request before anything is queued.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, NoReturn, TypeVar

import msgspec

from configs.model_sections import Defaults, Limits
from configs.model_settings import Model
from configs.pipeline_defaults import PipelineDefaults, complete_defaults
from configs.samplers import canonical_sampler, sampler_names
from configs.sections import Server
from configs.settings import Settings
from loadbalancer.access.api_keys import Caller
from loadbalancer.generation.decoding.messages import Size, SourceImages
from loadbalancer.schema.errors import InvalidRequest, ModelNotFound
from loadbalancer.schema.parsing import shorten
from loadbalancer.schema.requests import (
    SEEDS,
    BaseImageRequest,
    EditRequest,
    ImageRequest,
    LoraRequest,
    OpenAIImageRequest,
)
from wire.inputs import LORA_NAME, GenerationMode, ImageFormat, ImageInputs, Lora
from wire.messages import EngineInfo

Number = TypeVar("Number", int, float)
#: Values of `quality` that mean the same in different models of OpenAI.
_SAME_QUALITY = {"standard": "medium", "hd": "high", "medium": "standard", "high": "hd"}
#: The caller where keys are off.
ANYONE = Caller()
#: Forms of web pages send unused fields empty.
_DEFAULT_SIZE = (None, "", "auto")
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_MODES: dict[GenerationMode, str] = {"text": "text only", "image": "an image", "inpaint": "an image with a mask"}


class ImageModel(NamedTuple):
    """A model that generates images, as its requests are checked and completed."""

    name: str
    settings: Model
    #: None until a worker has connected.
    engine: EngineInfo | None
    #: Names of its LoRA adapters.
    loras: Collection[str]
    #: The defaults of requests, all set: as configured, as the engine says, or as the checkpoint's files say.
    defaults: Defaults
    steps: int
    guidance_scale: float
    scheduler: str
    #: Width and height; None where the limits do not allow the default.
    size: Size | None


def image_model(
    name: str, settings: Model, engine: EngineInfo | None = None, loras: Collection[str] = ()
) -> ImageModel:
    """Return the model with its defaults. It holds until the engine changes."""
    found = engine.defaults if engine is not None else None
    known = PipelineDefaults(found.steps, found.guidance_scale, found.side) if found is not None else None
    defaults = complete_defaults(settings, known)
    assert defaults.size is not None
    assert defaults.steps is not None
    assert defaults.guidance_scale is not None
    try:
        size = _size(None, defaults.size, settings.limits)
    except InvalidRequest:
        size = None
    usual = defaults.steps, defaults.guidance_scale, defaults.scheduler
    return ImageModel(name, settings, engine, loras, defaults, *usual, size)


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """One complete request: a task per item of `inputs`, which differ only in their seeds."""

    model: str
    inputs: list[ImageInputs]
    timeout_s: float
    priority: int
    #: Pixels of the source images, shared by all tasks.
    sources: Sequence[bytes] = ()
    #: Owner of the API key, and its share of the workers' time.
    owner: str = "anonymous"
    weight: float = 1.0
    #: True if it was counted as an arrival when an upstream server was tried.
    already_counted: bool = False


def resolve_images(
    request: ImageRequest | EditRequest,
    model: ImageModel,
    server: Server,
    random_seed: int,
    caller: Caller = ANYONE,
    file_format: ImageFormat | None = None,
) -> GenerationSpec:
    """The specification of `POST /v1/images/*`. Raises `InvalidRequest`.

    `file_format` replaces the request's `output_format`. `with_source_images` adds the source image, if the request
    has one.
    """
    n = _bounded("n", request.n, 1, 1, server.max_n)
    output_format = file_format or request.output_format or "png"
    quality = 100 if request.output_compression is None else request.output_compression
    if output_format == "png" and quality != 100:
        _reject("output_compression", quality, "Only 100 goes with output_format 'png', which is lossless")
    if request.partial_images and not request.stream:
        _reject("partial_images", request.partial_images, "Previews need stream: true")
    has_source_image = isinstance(request, EditRequest) or request.image is not None
    if not has_source_image and request.strength is not None:
        _reject("strength", request.strength, "It needs a source image in 'image'")
    if isinstance(request, ImageRequest) and request.mask is not None and not has_source_image:
        raise InvalidRequest("Invalid value for 'mask': It needs a source image in 'image'.", param="mask")
    return resolve_request(
        request,
        model,
        server,
        random_seed,
        caller,
        has_source_image=has_source_image,
        n=n,
        output_format=output_format,
        output_quality=quality,
        partial_images=request.partial_images or 0,
        quality=request.quality,
    )


def requested_size(request: OpenAIImageRequest, spec: GenerationSpec) -> Size | None:
    """The size that the request names; None where the source image determines it."""
    return None if request.size in _DEFAULT_SIZE else (spec.inputs[0].width, spec.inputs[0].height)


def with_source_images(
    spec: GenerationSpec,
    images: SourceImages,
    request: OpenAIImageRequest,
    model: ImageModel,
) -> GenerationSpec:
    """The specification with its source images. Raises `InvalidRequest` if the engine does not support them."""
    if model.engine is not None and images.mode not in model.engine.modes:
        raise _unsupported(images.mode, spec.model, model.engine)
    default = 1.0 if images.mode == "inpaint" else model.settings.defaults.strength
    strength = default if request.strength is None else request.strength
    steps = spec.inputs[0].steps
    if int(steps * strength) < 1:
        _reject("strength", strength, f"Of {steps} steps it leaves none")
    size = {"width": images.width, "height": images.height}
    inputs = [msgspec.structs.replace(each, mode=images.mode, strength=strength, **size) for each in spec.inputs]
    return replace(spec, inputs=inputs, sources=images.frames)


def _unsupported(mode: GenerationMode, model: str, engine: EngineInfo) -> InvalidRequest:
    supported = " or ".join(_MODES[each] for each in engine.modes)
    text = f"The model '{model}' cannot generate from {_MODES[mode]}. It supports {supported}."
    return InvalidRequest(text, param="image")


def resolve_request(
    request: BaseImageRequest,
    model: ImageModel,
    server: Server,
    random_seed: int,
    caller: Caller = ANYONE,
    *,
    has_source_image: bool = False,
    n: int = 1,
    output_format: ImageFormat = "png",
    output_quality: int = 100,
    partial_images: int = 0,
    quality: str | None = None,
) -> GenerationSpec:
    """The specification of any request, by default of `POST /predict`. Raises `InvalidRequest`."""
    settings, engine, limits, prompt = model.settings, model.engine, model.settings.limits, request.prompt
    if settings.quality:
        model = _with_preset(model, quality)
    negative_prompt = request.negative_prompt or ""
    for param, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if len(text) > server.max_prompt_chars:
            _reject(param, text, f"It has {len(text)} characters; at most {server.max_prompt_chars} are allowed")
    if not prompt.strip():
        _reject("prompt", prompt, "Must not be empty")
    if not has_source_image and engine is not None and "text" not in engine.modes:
        raise _unsupported("text", model.name, engine)
    usual_size = model.size if request.size in _DEFAULT_SIZE else None
    width, height = usual_size or _size(request.size, model.defaults.size, limits)
    steps = _bounded("num_inference_steps", request.num_inference_steps, model.steps, 1, limits.max_steps)
    guidance = _bounded("guidance_scale", request.guidance_scale, model.guidance_scale, 0, limits.max_guidance_scale)
    timeout_s = _bounded("timeout_s", request.timeout_s, server.timeout_s, 0, server.max_timeout_s)
    scheduler = canonical_sampler(request.scheduler) if request.scheduler else model.scheduler
    if scheduler is None:
        _reject("scheduler", request.scheduler, f"Supported: {', '.join(sampler_names())}")
    loras = _loras(request.loras, model) if request.loras else ()
    if request.reproducible and engine is not None and not engine.reproducible:
        _reject("reproducible", True, f"The model's engine ({engine.pipeline}) cannot promise equal bytes")
    seed = random_seed if request.seed is None else request.seed
    inputs = ImageInputs(
        prompt=prompt,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance,
        seed=seed,
        scheduler=scheduler,
        negative_prompt=negative_prompt,
        output_format=output_format,
        output_quality=output_quality,
        previews=partial_images,
        loras=loras,
        reproducible=bool(request.reproducible) or settings.reproducible,
    )
    images = [msgspec.structs.replace(inputs, seed=(seed + i) % SEEDS) for i in range(n)]
    return GenerationSpec(
        model.name, images, timeout_s, request.priority or 0, owner=caller.owner, weight=caller.weight
    )


def _with_preset(model: ImageModel, quality: str | None) -> ImageModel:
    """The model with the defaults that it gives to this quality."""
    for name in (quality, _SAME_QUALITY.get(quality or "")):
        for each, preset in model.settings.quality.items():
            if each == name:
                guidance = model.guidance_scale if preset.guidance_scale is None else preset.guidance_scale
                scheduler = preset.scheduler or model.scheduler
                return model._replace(steps=preset.steps or model.steps, guidance_scale=guidance, scheduler=scheduler)
    return model


def _loras(requested: Sequence[LoraRequest], model: ImageModel) -> tuple[Lora, ...]:
    """The requested adapters, checked against the model's own."""
    limits, engine = model.settings.limits, model.engine
    if model.settings.loras is None or (engine is not None and not engine.loras):
        raise InvalidRequest("The model takes no LoRA adapters.", param="loras")
    if len(requested) > limits.max_loras:
        text = f"{len(requested)} adapters are requested; at most {limits.max_loras} are allowed."
        raise InvalidRequest(text, param="loras")
    chosen: dict[str, Lora] = {}
    for i, lora in enumerate(requested):
        if not LORA_NAME.fullmatch(lora.name):
            _reject(f"loras[{i}].name", lora.name, "Must be 1 to 128 letters, digits, '.', '_' and '-', no sign first")
        if lora.name not in model.loras:
            _reject(f"loras[{i}].name", lora.name, "The model has no such adapter; GET /v1/models/{model} lists them")
        if lora.name in chosen:
            _reject(f"loras[{i}].name", lora.name, "It is named twice")
        scale = _bounded(f"loras[{i}].scale", lora.scale, 1.0, -limits.max_lora_scale, limits.max_lora_scale)
        chosen[lora.name] = Lora(lora.name, scale)
    return tuple(chosen.values())


def resolve_model(requested: str | None, settings: Settings) -> str:
    """The requested model's name, by default the first that generates images.

    Raises `ModelNotFound`, and `InvalidRequest` for a model of another kind.
    """
    image_models = (name for name, model in settings.models.items() if model.task == "image")
    name = requested or next(image_models, next(iter(settings.models)))
    if name not in settings.models:
        raise model_not_found(name, settings)
    if settings.models[name].task != "image":
        text = f"The model '{name}' generates no images: use POST {' or '.join(endpoints(name, settings))}."
        raise InvalidRequest(text, param="model", code="unsupported_endpoint")
    return name


def endpoints(name: str, settings: Settings) -> list[str]:
    """Return the paths that serve the model."""
    model = settings.models[name]
    if model.task == "image":
        return ["/v1/images/generations", "/v1/images/edits", "/predict"]
    if model.task == "text":
        return ["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    own = [] if model.api_path is None else [model.api_path]
    if model.embeddings:
        own.append("/v1/embeddings")
    return [f"/v1/models/{name}:predict", f"/v2/models/{name}/infer", *own]


def model_not_found(name: str, settings: Settings) -> ModelNotFound:
    served = ", ".join(f"'{model}'" for model in settings.models)
    return ModelNotFound(f"The model {shorten(name)} does not exist. Served: {served}.", param="model")


def _size(requested: str | None, default: str | None, limits: Limits) -> Size:
    """Width and height in pixels."""
    match = _SIZE.fullmatch((default if requested in _DEFAULT_SIZE else requested) or "")
    if match is None:
        _reject("size", requested, "Must be 'auto' or WIDTHxHEIGHT in pixels, such as '512x512'")
    width, height = int(match[1]), int(match[2])
    if width % 8 or height % 8:
        _reject("size", requested, "Width and height must be multiples of 8")
    if min(width, height) < limits.min_side:
        _reject("size", requested, f"Width and height must be at least {limits.min_side}")
    if width * height > limits.max_pixels:
        _reject("size", requested, f"It has {width * height} pixels; at most {limits.max_pixels} are allowed")
    return width, height


def _bounded(param: str, requested: Number | None, default: Number, minimum: float, maximum: Number) -> Number:
    if requested is None:
        return default
    if not minimum <= requested <= maximum:
        _reject(param, requested, f"Must be between {minimum} and {maximum}")
    return requested


def _reject(param: str, value: object, allowed: str) -> NoReturn:
    raise InvalidRequest(f"Invalid value for '{param}': {shorten(value)}. {allowed}.", param=param)
