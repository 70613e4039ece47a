"""What a pipeline generates with if nothing is asked of it: its own signature and configuration."""

from __future__ import annotations

import inspect
from typing import Any

from configs.pipeline_defaults import FALLBACK, PIPELINES, PipelineDefaults
from wire.messages import ImageDefaults


def pipeline_defaults(pipeline: Any) -> PipelineDefaults:
    """Return the defaults of a loaded pipeline."""
    signature = signature_defaults(type(pipeline))
    return signature._replace(side=signature.side or _side(pipeline))


def signature_defaults(pipeline: type) -> PipelineDefaults:
    """Return the defaults in the signature of the pipeline's `__call__`."""
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(pipeline.__call__).parameters.items()
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool)
    }
    true_scale = given.get("true_cfg_scale", 0)
    guidance = true_scale if true_scale > 1 else given.get("guidance_scale", FALLBACK.guidance_scale)
    height = given.get("height")
    return PipelineDefaults(
        int(given.get("num_inference_steps", FALLBACK.steps)), float(guidance), None if height is None else int(height)
    )


def image_defaults(defaults: PipelineDefaults) -> ImageDefaults:
    """Return the same as a message."""
    return ImageDefaults(defaults.steps, defaults.guidance_scale, defaults.side or FALLBACK.side or 512)


def _side(pipeline: Any) -> int | None:
    """Return the side of the pictures that the checkpoint was trained for, in pixels."""
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    latents = getattr(pipeline, "default_sample_size", None) or getattr(
        getattr(denoiser, "config", None), "sample_size", None
    )
    factor = getattr(pipeline, "vae_scale_factor", None)
    known = PIPELINES.get(type(pipeline).__name__)
    if isinstance(latents, int) and isinstance(factor, int):
        return latents * factor
    return known.side if known is not None else None
