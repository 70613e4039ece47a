"""Defaults of requests where the configuration says nothing: those of the pipeline's class, and of its own files.

A worker reads them from the pipeline that it has loaded, and reports them. Until one is connected, the balancer uses
this table, and the size in the checkpoint's files. Reads files, and imports no library of models.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from configs.model_parts import builtin_folder
from configs.model_sections import Defaults
from configs.model_settings import Model


class PipelineDefaults(NamedTuple):
    """What a pipeline generates with if nothing is asked of it."""

    steps: int
    guidance_scale: float
    #: Both sides in pixels; None: the checkpoint's files say it.
    side: int | None = None


#: Defaults of an engine that has none of its own.
FALLBACK = PipelineDefaults(25, 7.5, 512)

#: Defaults in the signatures of diffusers' pipelines. A test compares the table with the installed version.
PIPELINES: dict[str, PipelineDefaults] = {
    "StableDiffusionPipeline": PipelineDefaults(50, 7.5, None),
    "StableDiffusionImg2ImgPipeline": PipelineDefaults(50, 7.5, None),
    "StableDiffusionInpaintPipeline": PipelineDefaults(50, 7.5, None),
    "StableDiffusionControlNetPipeline": PipelineDefaults(50, 7.5, None),
    "StableDiffusionXLPipeline": PipelineDefaults(50, 5.0, None),
    "StableDiffusionXLImg2ImgPipeline": PipelineDefaults(50, 5.0, None),
    "StableDiffusionXLInpaintPipeline": PipelineDefaults(50, 7.5, None),
    "StableDiffusionXLControlNetPipeline": PipelineDefaults(50, 5.0, None),
    "StableDiffusion3Pipeline": PipelineDefaults(28, 7.0, None),
    "StableDiffusion3Img2ImgPipeline": PipelineDefaults(50, 7.0, None),
    "StableDiffusion3InpaintPipeline": PipelineDefaults(50, 7.0, None),
    "StableDiffusion3ControlNetPipeline": PipelineDefaults(28, 7.0, None),
    "FluxPipeline": PipelineDefaults(28, 3.5, 1024),
    "FluxImg2ImgPipeline": PipelineDefaults(28, 7.0, 1024),
    "FluxInpaintPipeline": PipelineDefaults(28, 7.0, 1024),
    "FluxFillPipeline": PipelineDefaults(50, 30.0, 1024),
    "FluxControlPipeline": PipelineDefaults(28, 3.5, 1024),
    "FluxControlNetPipeline": PipelineDefaults(28, 7.0, 1024),
    "FluxKontextPipeline": PipelineDefaults(28, 3.5, 1024),
    "Flux2Pipeline": PipelineDefaults(50, 4.0, 1024),
    "Flux2KleinPipeline": PipelineDefaults(50, 4.0, 1024),
    "QwenImagePipeline": PipelineDefaults(50, 4.0, 1024),
    "QwenImageImg2ImgPipeline": PipelineDefaults(50, 4.0, 1024),
    "QwenImageInpaintPipeline": PipelineDefaults(50, 4.0, 1024),
    "QwenImageControlNetPipeline": PipelineDefaults(50, 4.0, 1024),
    "ZImagePipeline": PipelineDefaults(50, 5.0, 1024),
    "ZImageImg2ImgPipeline": PipelineDefaults(50, 5.0, 1024),
    "LuminaPipeline": PipelineDefaults(30, 4.0, 1024),
    "Lumina2Pipeline": PipelineDefaults(30, 4.0, 1024),
    "AuraFlowPipeline": PipelineDefaults(50, 3.5, 1024),
    "OvisImagePipeline": PipelineDefaults(50, 5.0, 1024),
    "Krea2Pipeline": PipelineDefaults(28, 4.5, 1024),
    "ChromaPipeline": PipelineDefaults(35, 5.0, 1024),
    "ChromaImg2ImgPipeline": PipelineDefaults(35, 5.0, 1024),
    "BriaPipeline": PipelineDefaults(30, 5.0, 1024),
    "SanaPipeline": PipelineDefaults(20, 4.5, 1024),
    "SanaSprintPipeline": PipelineDefaults(2, 4.5, 1024),
    "SanaControlNetPipeline": PipelineDefaults(20, 4.5, 1024),
    "PixArtAlphaPipeline": PipelineDefaults(20, 4.5, None),
    "PixArtSigmaPipeline": PipelineDefaults(20, 4.5, None),
    "Kandinsky5T2IPipeline": PipelineDefaults(50, 3.5, 1024),
    "LatentConsistencyModelPipeline": PipelineDefaults(4, 8.5, None),
    "StableDiffusionInstructPix2PixPipeline": PipelineDefaults(100, 7.5, None),
    "KolorsPipeline": PipelineDefaults(50, 5.0, None),
}
_MAX_BYTES = 1 << 20


def with_defaults(model: Model, found: PipelineDefaults | None = None) -> Model:
    """Return the model with all defaults set. `found`: what a worker reports; otherwise the files are read."""
    defaults = complete_defaults(model, found)
    return model if defaults is model.defaults else model.model_copy(update={"defaults": defaults})


def complete_defaults(model: Model, found: PipelineDefaults | None = None) -> Defaults:
    """Return the model's defaults, all set, as `with_defaults` does."""
    configured, limits = model.defaults, model.limits
    if None not in (configured.size, configured.steps, configured.guidance_scale):
        return configured
    if found is None:
        found = _from_files(model.path, model.base, model.pipeline) if model.engine == "diffusion" else FALLBACK
    return _complete(configured, found, limits.max_pixels, limits.max_steps, limits.max_guidance_scale)


@functools.lru_cache(maxsize=256)
def _complete(
    configured: Defaults, found: PipelineDefaults, max_pixels: int, max_steps: int, max_guidance_scale: float
) -> Defaults:
    """Needed for each request."""
    side = found.side or FALLBACK.side or 0
    while side * side > max_pixels and side > 64:
        side -= 64
    return Defaults(
        size=configured.size or f"{side}x{side}",
        steps=configured.steps or min(found.steps, max_steps),
        guidance_scale=min(found.guidance_scale, max_guidance_scale)
        if configured.guidance_scale is None
        else configured.guidance_scale,
        scheduler=configured.scheduler,
        strength=configured.strength,
    )


@functools.lru_cache(maxsize=256)
def _from_files(path: str, base: str | None, pipeline: str | None) -> PipelineDefaults:
    """Return the defaults as far as the files of the checkpoint show them."""
    place = builtin_folder(base or path) or Path(base or path)
    folder = place.with_suffix("") if place.suffix == ".safetensors" else place
    name = pipeline or _read_json(folder / "model_index.json").get("_class_name")
    known = PIPELINES.get(str(name), FALLBACK)
    return known if known.side is not None else known._replace(side=_side(folder))


def _side(folder: Path) -> int | None:
    """Return the side of the pictures that the denoiser was trained for, in pixels."""
    denoiser = _read_json(folder / "unet" / "config.json") or _read_json(folder / "transformer" / "config.json")
    latents, blocks = denoiser.get("sample_size"), _read_json(folder / "vae" / "config.json").get("block_out_channels")
    if isinstance(latents, int) and isinstance(blocks, list):
        return int(latents * 2 ** (len(blocks) - 1))
    return None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes()[:_MAX_BYTES]) if file.is_file() else {}  # not a pipe
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
