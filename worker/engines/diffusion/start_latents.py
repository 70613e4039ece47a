"""What a row starts from: noise, and in the other modes the latents of a source picture and of a mask.

Random numbers are drawn in the order in which the diffusers pipelines draw them, so that a seed means the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wire.messages import SOURCES, ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.device import moved
from worker.engines.diffusion.families.base import Family
from worker.engines.diffusion.row import Kept


@dataclass(frozen=True)
class Start:
    """Tensors in the shape that the sampler works on, unless they say otherwise."""

    noise: torch.Tensor
    #: The source picture, where the first latents are made of it and not of noise alone.
    image: torch.Tensor | None = None
    #: What a mask protects on the way.
    kept: Kept | None = None
    #: `(1, 1 + C, h, w)`: mask and masked picture, for a denoiser that reads these.
    channels: torch.Tensor | None = None


def start(family: Family, inputs: ImageInputs, sources: Sequence[bytes], generator: torch.Generator) -> Start:
    """What the request starts from. Raises `TaskError` for sources that are not as its mode demands."""
    _check(inputs, sources)
    if inputs.mode == "text":
        return Start(family.packed(family.noise(inputs, generator)))
    picture = _pixels(sources[0], inputs, 3, family.device) * 2 - 1
    if inputs.mode == "image":
        image = family.packed(family.encode_picture(picture, generator))
        return Start(family.packed(family.noise(inputs, generator)), image)
    anew = _pixels(sources[1], inputs, 1, family.device) >= 0.5
    if family.reads_mask:
        return _start_reading_mask(family, inputs, picture, anew, generator)
    latents = family.encode_picture(picture, generator)
    noise = family.packed(family.noise(inputs, generator))
    # The pipelines encode the masked picture here and make no use of it, except that random numbers are used up.
    family.skip_encoding(inputs, generator)
    image, mask = family.packed(latents), family.packed(_scaled(anew, latents).expand_as(latents))
    return Start(noise, image if inputs.strength < 1 else None, Kept(image, noise, mask))


def _start_reading_mask(
    family: Family, inputs: ImageInputs, picture: torch.Tensor, anew: torch.Tensor, generator: torch.Generator
) -> Start:
    image = family.encode_picture(picture, generator) if inputs.strength < 1 else None
    noise = family.noise(inputs, generator)
    masked = family.encode_picture(picture * ~anew, generator)
    return Start(noise, image, channels=torch.cat([_scaled(anew, masked), masked], dim=1))


def _check(inputs: ImageInputs, sources: Sequence[bytes]) -> None:
    if len(sources) != SOURCES[inputs.mode]:
        raise TaskError(
            "invalid", f"mode '{inputs.mode}' takes {SOURCES[inputs.mode]} source frames, {len(sources)} came"
        )
    for source, name, channels in zip(sources, ("picture", "mask"), (3, 1), strict=False):
        size = inputs.width * inputs.height * channels
        if len(source) != size:
            raise TaskError(
                "invalid",
                f"a {name} of {inputs.width}x{inputs.height} has {size} bytes of pixels, {len(source)} came",
            )


def _pixels(source: bytes, inputs: ImageInputs, channels: int, device: torch.device) -> torch.Tensor:
    """Pixels as `(1, channels, H, W)` float32 in [0, 1]."""
    levels = torch.frombuffer(bytearray(source), dtype=torch.uint8).view(1, inputs.height, inputs.width, channels)
    return moved(levels, device).permute(0, 3, 1, 2).to(torch.float32) / 255


def _scaled(anew: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """The mask at the size of the latents, `(1, 1, h, w)`."""
    return torch.nn.functional.interpolate(anew.float(), size=latents.shape[-2:]).to(latents.dtype)
