"""What one family of checkpoints does in its own way: encode text, shape its latents, run the denoiser, decode.

Everything else, from sampling to guidance, is the same for all and lives in `rows`, `forward` and `engine`. A family is
a subclass in `families/`; this is what they share.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image

from wire.messages import SOURCES, DrawMode, ImageInputs
from worker.engine import TaskError, UnsupportedModel
from worker.engines.diffusion.device import to_device
from worker.engines.diffusion.families.prompt_cache import Encoded
from worker.engines.diffusion.sampling import SchedulerSetup

#: What the denoiser is told beside latents and time, by name; the leading dimension counts passes.
Conditions = dict[str, torch.Tensor]


class Family(abc.ABC):
    """A checkpoint's parts on their device, and how its family uses them."""

    #: Pipeline classes of the checkpoints that belong to it. The first one's parts are what it runs on.
    CLASSES: ClassVar[tuple[str, ...]]
    #: Name of the denoiser among the pipeline's parts.
    DENOISER: ClassVar[str]

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        """Raises `UnsupportedModel` for parts that cannot be used."""
        self.pipeline = pipeline
        self.device = device
        self.vae: Any = pipeline.vae
        #: Whether the denoiser reads a mask and a masked picture beside the latents, and can do nothing else.
        self.has_mask_channels = self._extra_channels() > 0

    # ---- what it is

    @property
    def denoiser(self) -> Any:
        """The module that every step runs."""
        return getattr(self.pipeline, self.DENOISER)

    @property
    def scheduler(self) -> Any:
        """The scheduler that the checkpoint ships: a pattern to build others from, never stepped."""
        return self.pipeline.scheduler

    @property
    def dtype(self) -> torch.dtype:
        """Of the latents and of everything that the denoiser reads, except the timesteps."""
        dtype: torch.dtype = self.denoiser.dtype
        return dtype

    @property
    def modes(self) -> tuple[DrawMode, ...]:
        """What it can draw from."""
        return ("inpaint",) if self.has_mask_channels else tuple(SOURCES)

    @property
    def size_multiple(self) -> int:
        """Width and height must be multiples of this many pixels."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def latent_channels(self) -> int:
        """Channels of a picture's latents."""
        return int(self.vae.config.latent_channels)

    def _denoiser_channels(self) -> int:
        return int(self.denoiser.config.in_channels)

    def _extra_channels(self) -> int:
        extra = self._denoiser_channels() - self.latent_channels
        if extra not in (0, 1 + self.latent_channels):
            raise UnsupportedModel(
                f"its denoiser reads {self._denoiser_channels()} channels where a picture has {self.latent_channels}"
            )
        return extra

    def validate(self, inputs: ImageInputs) -> None:
        """Raises `TaskError` for a request that this model cannot draw, whatever the load."""
        if inputs.mode not in self.modes:
            raise TaskError("invalid", f"this model draws from {' or '.join(self.modes)} only, not from {inputs.mode}")
        if inputs.width % self.size_multiple or inputs.height % self.size_multiple:
            raise TaskError(
                "invalid",
                f"width and height must be multiples of {self.size_multiple}, got {inputs.width}x{inputs.height}",
            )

    # ---- text

    def is_guided(self, inputs: ImageInputs) -> bool:
        """Whether the request takes a second pass, with its negative prompt, to be led away from."""
        return inputs.guidance_scale > 1

    def texts(self, inputs: ImageInputs) -> list[str]:
        """The texts that the request needs encoded: the negative one first, where it is guided."""
        return [inputs.negative_prompt, inputs.prompt] if self.is_guided(inputs) else [inputs.prompt]

    @abc.abstractmethod
    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Embeddings by name, each `(texts, ...)`; what a text has past an encoder's length is cut off."""

    def conditions(self, inputs: ImageInputs, encoded: Sequence[Encoded]) -> Conditions:
        """What the denoiser is told for this request; `encoded` are its `texts`, in order."""
        del inputs
        return {name: torch.stack([text[name] for text in encoded]) for name in encoded[0]}

    # ---- latents

    def scheduler_setup(self, inputs: ImageInputs) -> SchedulerSetup:
        """How the request's sampler is to be set up."""
        return SchedulerSetup(inputs.steps, 1.0 if inputs.mode == "text" else inputs.strength)

    def noise(self, inputs: ImageInputs, generator: torch.Generator) -> torch.Tensor:
        """Noise in the shape of the picture's latents, drawn on the CPU: equal on every device and in every batch."""
        return to_device(torch.randn(self._latent_shape(inputs), generator=generator, dtype=self.dtype), self.device)

    def consume_encoding_noise(self, inputs: ImageInputs, generator: torch.Generator) -> None:
        """Draw the random numbers that `encode_picture` draws."""
        torch.randn(self._latent_shape(inputs), generator=generator, dtype=self.vae.dtype)

    def _latent_shape(self, inputs: ImageInputs) -> tuple[int, int, int, int]:
        factor = self.pipeline.vae_scale_factor
        return 1, self.latent_channels, inputs.height // factor, inputs.width // factor

    def vae_encode(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Latents `(1, C, h, w)` of a picture `(1, 3, H, W)` in [-1, 1]: a sample of the autoencoder's distribution."""
        spread = self.vae.encode(image.to(self.dtype).to(self.vae.dtype)).latent_dist
        noise = torch.randn(spread.mean.shape, generator=generator, dtype=spread.mean.dtype)
        return self.scale_latents((spread.mean + spread.std * to_device(noise, self.device)).to(self.dtype))

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the denoiser knows them, of those that the autoencoder makes."""
        center, spread = self._latent_statistics(latents)
        scaled: torch.Tensor = (latents - center) * self.vae.config.scaling_factor / spread
        return scaled

    def unscale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """The reverse of `from_vae`."""
        center, spread = self._latent_statistics(latents)
        unscaled: torch.Tensor = latents * spread / self.vae.config.scaling_factor + center
        return unscaled

    def _latent_statistics(self, latents: torch.Tensor) -> tuple[float | torch.Tensor, float | torch.Tensor]:
        """Middle and spread of what the autoencoder makes, before scaling: per channel, where it says so."""
        config = self.vae.config
        mean, spread = config.get("latents_mean"), config.get("latents_std")
        if mean is None or spread is None:
            return config.get("shift_factor") or 0.0, 1.0
        both = to_device(torch.tensor([mean, spread], dtype=latents.dtype), self.device)
        center, width = both.view(2, 1, -1, 1, 1)
        return center, width

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `(1, C, h, w)` in the shape that sampler and denoiser work on."""
        return latents

    def unpack(self, latents: torch.Tensor, inputs: ImageInputs) -> torch.Tensor:
        """The reverse of `packed`."""
        del inputs
        return latents

    # ---- the model

    @abc.abstractmethod
    def denoise(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """One forward pass: samples `(B, ...)`, float32 timesteps `(B,)` and conditions `(B, ...)` to `(B, ...)`."""

    def decode(self, latents: torch.Tensor, inputs: ImageInputs) -> Image.Image:
        """The picture of one row's latents. Raises `TaskError` if the autoencoder's output is not finite."""
        latents = self.unscale_latents(self.unpack(latents, inputs).to(self.vae.dtype).contiguous())
        decoded = self.vae.decode(latents, return_dict=False)[0]
        if not torch.isfinite(decoded).all():
            raise TaskError("error", f"no picture: the autoencoder's output is not finite in {self.vae.dtype}")
        image: Image.Image = self.pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
        return image


class UNetFamily(Family):
    """Families whose denoiser is a UNet."""

    DENOISER = "unet"

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        super().__init__(pipeline, device)
        #: Convolutions on a GPU are fastest with the channels last.
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=self._layout)

    @property
    def _guidance_embedding_dim(self) -> int | None:
        """Width of the guidance embedding of a UNet that was taught guidance, and takes it as an input."""
        width: int | None = self.pipeline.unet.config.time_cond_proj_dim
        return width

    def is_guided(self, inputs: ImageInputs) -> bool:
        """A UNet that takes guidance as an input needs no second pass for it."""
        return super().is_guided(inputs) and self._guidance_embedding_dim is None

    def conditions(self, inputs: ImageInputs, encoded: Sequence[Encoded]) -> Conditions:
        """With guidance, where the UNet takes it as an input."""
        conditions = super().conditions(inputs, encoded)
        if self._guidance_embedding_dim is not None:
            scale = torch.tensor([inputs.guidance_scale - 1])
            embedding = self.pipeline.get_guidance_scale_embedding(scale, embedding_dim=self._guidance_embedding_dim)
            conditions["timestep_cond"] = to_device(embedding.to(self.dtype), self.device)
        return conditions

    def denoise(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """As every family."""
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
        """What the UNet reads beside text and time."""
        del conditions
        return None


def with_channels(samples: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    """The samples, and beside them the mask and masked picture of a model that reads these."""
    channels = conditions.get("channels")
    return samples if channels is None else torch.cat([samples, channels], dim=1)
