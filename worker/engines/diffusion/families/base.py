"""`Family`: the operations that differ between checkpoint families.

A family encodes text, shapes latents, runs the denoiser and decodes. Sampling and guidance are shared.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image

from wire.inputs import SOURCES, GenerationMode, ImageInputs
from worker.engine import TaskError, UnsupportedModel
from worker.engines.diffusion.families.prompt_cache import Encoded
from worker.engines.diffusion.sampling import SchedulerSetup
from worker.engines.torch_device import to_device

#: Inputs of the denoiser beside latents and timesteps, by name; dimension 0 counts passes.
Conditions = dict[str, torch.Tensor]


class Family(abc.ABC):
    """A checkpoint's parts on their device."""

    #: Pipeline classes of the family's checkpoints. Parts are loaded as the first one.
    CLASSES: ClassVar[tuple[str, ...]]
    #: Name of the denoiser among the pipeline's parts.
    DENOISER: ClassVar[str]

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        """Raises `UnsupportedModel` for unusable parts."""
        self.pipeline = pipeline
        self.device = device
        self.vae: Any = pipeline.vae
        #: True for inpainting denoisers, which always read a mask and a masked image.
        self.has_mask_channels = self._extra_channels() > 0

    # ---- properties

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, self.DENOISER)

    @property
    def scheduler(self) -> Any:
        """The scheduler that the checkpoint ships: a template that is never stepped."""
        return self.pipeline.scheduler

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the latents and of all denoiser inputs except the timesteps."""
        dtype: torch.dtype = self.denoiser.dtype
        return dtype

    @property
    def modes(self) -> tuple[GenerationMode, ...]:
        return ("inpaint",) if self.has_mask_channels else tuple(SOURCES)

    @property
    def size_multiple(self) -> int:
        """Width and height must be multiples of this number of pixels."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    def _denoiser_channels(self) -> int:
        return int(self.denoiser.config.in_channels)

    def _extra_channels(self) -> int:
        extra = self._denoiser_channels() - self.latent_channels
        if extra not in (0, 1 + self.latent_channels):
            raise UnsupportedModel(
                f"its denoiser has {self._denoiser_channels()} input channels, the latents have {self.latent_channels}"
            )
        return extra

    def validate(self, inputs: ImageInputs) -> None:
        if inputs.mode not in self.modes:
            raise TaskError("invalid", f"this model supports mode {' or '.join(self.modes)}, not {inputs.mode}")
        if inputs.width % self.size_multiple or inputs.height % self.size_multiple:
            raise TaskError(
                "invalid",
                f"width and height must be multiples of {self.size_multiple}, got {inputs.width}x{inputs.height}",
            )

    # ---- text

    def is_guided(self, inputs: ImageInputs) -> bool:
        """Return true if the request needs a second pass for its negative prompt."""
        return inputs.guidance_scale > 1

    def texts(self, inputs: ImageInputs) -> list[str]:
        """Return the texts to encode: with guidance, the negative prompt comes first."""
        return [inputs.negative_prompt, inputs.prompt] if self.is_guided(inputs) else [inputs.prompt]

    def windows(self, inputs: ImageInputs) -> int:
        """Return how many windows of the text encoders the request's texts take. Families without them truncate."""
        del inputs
        return 1

    def truncated_tokens(self, inputs: ImageInputs) -> int:
        """Return how many tokens at the ends of the request's texts are not read."""
        del inputs
        return 0

    def encode_windows(self, texts: list[str], windows: int) -> dict[str, torch.Tensor]:
        """Return embeddings as `encode` does, of this many windows."""
        assert windows == 1
        return self.encode(texts)

    @abc.abstractmethod
    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Return embeddings by name, each `(texts, ...)`. Long texts are truncated."""

    def conditions(self, inputs: ImageInputs, encoded: Sequence[Encoded]) -> Conditions:
        del inputs
        return {name: torch.stack([text[name] for text in encoded]) for name in encoded[0]}

    # ---- latents

    def scheduler_setup(self, inputs: ImageInputs) -> SchedulerSetup:
        return SchedulerSetup(inputs.steps, 1.0 if inputs.mode == "text" else inputs.strength)

    def noise(self, inputs: ImageInputs, generator: torch.Generator) -> torch.Tensor:
        """Return noise in the shape of the latents, drawn on the CPU: equal on every device."""
        return to_device(torch.randn(self._latent_shape(inputs), generator=generator, dtype=self.dtype), self.device)

    def consume_encoding_noise(self, inputs: ImageInputs, generator: torch.Generator) -> None:
        """Draw the random numbers that `vae_encode` draws."""
        torch.randn(self._latent_shape(inputs), generator=generator, dtype=self.vae.dtype)

    def _latent_shape(self, inputs: ImageInputs) -> tuple[int, int, int, int]:
        factor = self.pipeline.vae_scale_factor
        return 1, self.latent_channels, inputs.height // factor, inputs.width // factor

    def vae_encode(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Sample latents `(1, C, h, w)` of an image `(1, 3, H, W)` in [-1, 1] from the VAE's distribution."""
        spread = self.vae.encode(image.to(self.dtype).to(self.vae.dtype)).latent_dist
        noise = torch.randn(spread.mean.shape, generator=generator, dtype=spread.mean.dtype)
        return self.scale_latents((spread.mean + spread.std * to_device(noise, self.device)).to(self.dtype))

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Convert the VAE's latents to the denoiser's scale."""
        center, spread = self._latent_statistics(latents)
        scaled: torch.Tensor = (latents - center) * self.vae.config.scaling_factor / spread
        return scaled

    def unscale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Invert `scale_latents`."""
        center, spread = self._latent_statistics(latents)
        unscaled: torch.Tensor = latents * spread / self.vae.config.scaling_factor + center
        return unscaled

    def _latent_statistics(self, latents: torch.Tensor) -> tuple[float | torch.Tensor, float | torch.Tensor]:
        """Return mean and standard deviation of the VAE's latents, per channel if configured."""
        config = self.vae.config
        mean, spread = config.get("latents_mean"), config.get("latents_std")
        if mean is None or spread is None:
            return config.get("shift_factor") or 0.0, 1.0
        both = to_device(torch.tensor([mean, spread], dtype=latents.dtype), self.device)
        center, width = both.view(2, 1, -1, 1, 1)
        return center, width

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """Convert latents `(1, C, h, w)` to the shape that sampler and denoiser use."""
        return latents

    def unpack(self, latents: torch.Tensor, inputs: ImageInputs) -> torch.Tensor:
        del inputs
        return latents

    # ---- model

    @abc.abstractmethod
    def denoise(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Run the denoiser: samples `(B, ...)`, float32 timesteps `(B,)`, conditions `(B, ...)`; returns `(B, ...)`."""

    def decode(self, latents: torch.Tensor, inputs: ImageInputs, vae: Any = None) -> Image.Image:
        """Decode one row's latents, with `vae` or the family's own. Raises `TaskError` if the output is not finite."""
        vae = vae or self.vae
        latents = self.unscale_latents(self.unpack(latents, inputs).to(self.vae.dtype).contiguous())
        decoded = vae.decode(latents, return_dict=False)[0]
        if not torch.isfinite(decoded).all():
            raise TaskError("error", f"no image: the autoencoder's output is not finite in {self.vae.dtype}")
        image: Image.Image = self.pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
        return image

    def decode_preview(self, latents: torch.Tensor, inputs: ImageInputs, tiny: Any) -> Image.Image:
        """Decode one row's latents with a small autoencoder, which takes them in the denoiser's scale."""
        latents = self.unpack(latents, inputs).to(tiny.dtype) / tiny.config.scaling_factor + tiny.config.shift_factor
        decoded = tiny.decode(latents.contiguous(), return_dict=False)[0]
        image: Image.Image = self.pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
        return image


class UNetFamily(Family):
    """Families whose denoiser is a UNet."""

    DENOISER = "unet"

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        super().__init__(pipeline, device)
        #: Convolutions on a GPU are fastest in channels-last layout.
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=self._layout)

    @property
    def _guidance_embedding_dim(self) -> int | None:
        """Size of the guidance embedding of a guidance-distilled UNet; None for others."""
        width: int | None = self.pipeline.unet.config.time_cond_proj_dim
        return width

    def is_guided(self, inputs: ImageInputs) -> bool:
        return super().is_guided(inputs) and self._guidance_embedding_dim is None

    def conditions(self, inputs: ImageInputs, encoded: Sequence[Encoded]) -> Conditions:
        conditions = super().conditions(inputs, encoded)
        if self._guidance_embedding_dim is not None:
            scale = torch.tensor([inputs.guidance_scale - 1])
            embedding = self.pipeline.get_guidance_scale_embedding(scale, embedding_dim=self._guidance_embedding_dim)
            conditions["timestep_cond"] = to_device(embedding.to(self.dtype), self.device)
        return conditions

    def denoise(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        output: torch.Tensor = self.pipeline.unet(
            with_channels(samples, conditions).contiguous(memory_format=self._layout),
            timesteps,
            encoder_hidden_states=conditions["embeddings"],
            timestep_cond=conditions.get("timestep_cond"),
            added_cond_kwargs=self._added_conditions(conditions),
            return_dict=False,
        )[0]
        return output

    def _added_conditions(self, conditions: Conditions) -> dict[str, torch.Tensor] | None:
        del conditions
        return None


def with_channels(samples: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    """Concatenate the mask and masked image, if any, to the samples."""
    channels = conditions.get("channels")
    return samples if channels is None else torch.cat([samples, channels], dim=1)
