"""The initial state of a row: noise, source image latents and mask.

Random numbers are drawn in the same order as in the diffusers pipelines, so that seeds are equivalent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wire.inputs import ImageInputs
from worker.engine import check_sources
from worker.engines.diffusion.families.base import Family
from worker.engines.diffusion.row import MaskState
from worker.engines.torch_device import to_device


@dataclass(frozen=True)
class StartLatents:
    """Tensors have the shape of the sampler's latents unless noted."""

    noise: torch.Tensor
    #: Source image latents; None to start from noise alone.
    image_latents: torch.Tensor | None = None
    mask_state: MaskState | None = None
    #: `(1, 1 + C, h, w)`: mask and masked image, for inpainting denoisers.
    channels: torch.Tensor | None = None


def make_start_latents(
    family: Family, inputs: ImageInputs, sources: Sequence[bytes], generator: torch.Generator
) -> StartLatents:
    """Build the start state of a request. Raises `TaskError` for invalid sources."""
    check_sources(inputs, sources)
    if inputs.mode == "text":
        return StartLatents(family.pack(family.noise(inputs, generator)))
    image = _pixels(sources[0], inputs, 3, family.device) * 2 - 1
    if inputs.mode == "image":
        image_latents = family.pack(family.vae_encode(image, generator))
        return StartLatents(family.pack(family.noise(inputs, generator)), image_latents)
    repaint = _pixels(sources[1], inputs, 1, family.device) >= 0.5
    if family.has_mask_channels:
        return _start_with_mask_channels(family, inputs, image, repaint, generator)
    latents = family.vae_encode(image, generator)
    noise = family.pack(family.noise(inputs, generator))
    # The pipelines encode the masked image here and discard it: consume the same random numbers.
    family.consume_encoding_noise(inputs, generator)
    image_latents, mask = family.pack(latents), family.pack(_scaled(repaint, latents).expand_as(latents))
    return StartLatents(noise, image_latents if inputs.strength < 1 else None, MaskState(image_latents, noise, mask))


def _start_with_mask_channels(
    family: Family, inputs: ImageInputs, image: torch.Tensor, repaint: torch.Tensor, generator: torch.Generator
) -> StartLatents:
    image_latents = family.vae_encode(image, generator) if inputs.strength < 1 else None
    noise = family.noise(inputs, generator)
    masked_latents = family.vae_encode(image * ~repaint, generator)
    return StartLatents(
        noise, image_latents, channels=torch.cat([_scaled(repaint, masked_latents), masked_latents], dim=1)
    )


def _pixels(source: bytes, inputs: ImageInputs, channels: int, device: torch.device) -> torch.Tensor:
    """Return pixels as `(1, channels, H, W)` float32 in [0, 1]."""
    levels = torch.frombuffer(bytearray(source), dtype=torch.uint8).view(1, inputs.height, inputs.width, channels)
    return to_device(levels, device).permute(0, 3, 1, 2).to(torch.float32) / 255


def _scaled(repaint: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Return the mask at the latents' size, `(1, 1, h, w)`."""
    return torch.nn.functional.interpolate(repaint.float(), size=latents.shape[-2:]).to(latents.dtype)
