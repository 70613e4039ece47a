"""Implements `StepEngine` on diffusers: one forward pass for all rows, then each row's own sampler.

Rows of one batch may differ in everything but their size: prompt, steps, position, sampler, guidance, seed. What
comes out equals what the diffusers pipeline makes of each request alone, up to the rounding of other batch sizes;
a row alone in its step is equal to the bit. Long runs of LCM with strong guidance amplify rounding until it can be
seen, in the pipeline as here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import psutil
import torch
from diffusers.utils.torch_utils import randn_tensor

from configs.schema import Model
from wire.messages import ImageInputs
from worker.engine import BatchKey, Checkpoint, Row, TaskError
from worker.engines.diffusion.family import StableDiffusion
from worker.engines.diffusion.loading import load_family
from worker.engines.diffusion.pictures import encoded
from worker.engines.diffusion.rows import DiffusionRow
from worker.engines.diffusion.sampling import start_sampling
from worker.engines.diffusion.texts import TextCache

#: 256 texts are 30 MB of GPU memory for Stable Diffusion 1.5.
_TEXTS = 256


class DiffusionEngine:
    """One checkpoint on one device."""

    _family: StableDiffusion
    _texts: TextCache

    def __init__(self, model: Model, device: str) -> None:
        """`device` is `cuda:N`, or `cpu` with or without the number of its slot."""
        self._model = model
        self._device = torch.device("cpu" if device.startswith("cpu") else device)
        #: Done on the GPU when the last step is: see `step`.
        self._last_step: torch.cuda.Event | None = None
        #: Two decodes at once would need twice the memory and gain no time.
        self._decoding = threading.Lock()

    def load(self) -> None:
        """Load, then make one step and one picture. Raises `UnsupportedModel` for a checkpoint that it cannot run."""
        if self._device.type == "cpu":
            # Workers share the cores: a second thread each would make all of them wait for one another.
            torch.set_num_threads(1)
        self._family = load_family(self._model, self._device)
        self._texts = TextCache(self._family.encode, _TEXTS)
        self._warm_up()

    def key(self, inputs: ImageInputs) -> BatchKey:
        """Pictures of one size share a forward pass."""
        return inputs.height, inputs.width

    @torch.inference_mode()
    def admit(self, tasks: Sequence[tuple[ImageInputs, Checkpoint | None]]) -> list[Row | TaskError]:
        """Rows from their start. A checkpoint is refused, because `evict` gives none away."""
        embeddings = self._texts.get([text for inputs, _ in tasks for text in _texts_of(inputs)])
        rows: list[Row | TaskError] = []
        for inputs, checkpoint in tasks:
            if checkpoint is not None:
                rows.append(TaskError("error", "the checkpoint is not one of this engine"))
                continue
            try:
                rows.append(self._start(inputs, torch.stack([embeddings[text] for text in _texts_of(inputs)])))
            except TaskError as error:
                rows.append(error)
        return rows

    def _start(self, inputs: ImageInputs, embeddings: torch.Tensor) -> DiffusionRow:
        shape = self._family.noise_shape(inputs.width, inputs.height)
        # On the CPU, so that a seed gives the same noise on every device and in every batch.
        generator = torch.Generator("cpu").manual_seed(inputs.seed)
        sampling = start_sampling(inputs.scheduler, self._family.scheduler, inputs.steps, generator)
        noise = randn_tensor(shape, generator=generator, device=self._device, dtype=self._family.dtype)
        timesteps = sampling.timesteps.to(self._device, torch.float32)
        return DiffusionRow(inputs, sampling, embeddings, timesteps, noise * sampling.noise_scale)

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> None:
        """One forward pass for all rows. Raises `TaskError` if the sampler of one of them broke at its last step."""
        own: list[DiffusionRow] = []
        for row in rows:
            assert isinstance(row, DiffusionRow)
            if row.broken is not None:
                raise row.broken
            own.append(row)
        if self._last_step is not None:
            # The GPU works behind the loop's back. One step ahead keeps it busy; more would let newcomers wait for
            # steps that are queued already, and would measure the queueing instead of the step.
            self._last_step.synchronize()
        try:
            outputs = self._forward(own)
        except torch.OutOfMemoryError as error:
            raise TaskError("out_of_memory", f"{len(own)} images do not fit into the GPU's memory: {error}") from error
        for row, output in zip(own, outputs, strict=True):
            row.advance(output)
        if self._device.type == "cuda":
            self._last_step = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._last_step.record()

    def _forward(self, rows: Sequence[DiffusionRow]) -> Sequence[torch.Tensor]:
        samples, timesteps, embeddings = zip(*(row.question() for row in rows), strict=True)
        output = self._family.denoise(torch.cat(samples), torch.cat(timesteps), torch.cat(embeddings))
        return torch.split(output, [row.passes for row in rows])

    def render(self, row: Row) -> Callable[[], bytes]:
        """The picture of the moment; on the way, the sampler's guess at the final one where it makes a guess."""
        assert isinstance(row, DiffusionRow)
        return partial(self._picture, row.picture(), row.inputs)

    @torch.inference_mode()
    def _picture(self, latents: torch.Tensor, inputs: ImageInputs) -> bytes:
        with self._decoding:
            if not torch.isfinite(latents).all():
                raise TaskError(
                    "error",
                    f"no picture: the latents of scheduler '{inputs.scheduler}' are not finite in {latents.dtype}",
                )
            picture = self._family.decode(latents)
        return encoded(picture, inputs.output_format, inputs.output_quality)

    def evict(self, row: Row) -> Checkpoint | None:
        """None: the state of the samplers cannot be taken elsewhere yet, so the task starts again."""
        del row
        return None

    def memory_bytes(self) -> int:
        """Memory that torch holds on the GPU, or this process in main memory."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return int(psutil.Process().memory_info().rss)

    def _warm_up(self) -> None:
        """A step and a picture at the default settings: kernels are chosen and memory is taken before any request."""
        defaults = self._model.defaults
        width, height = map(int, defaults.size.split("x"))
        inputs = ImageInputs(
            "", width, height, defaults.steps, defaults.guidance_scale, seed=0, scheduler=defaults.scheduler
        )
        [row] = self.admit([(inputs, None)])
        if isinstance(row, TaskError):
            raise row
        self.step([row])
        self.render(row)()


def _texts_of(inputs: ImageInputs) -> list[str]:
    """The texts that guide a request, the negative one first; there is none without guidance."""
    return [inputs.negative_prompt, inputs.prompt] if inputs.guidance_scale > 1 else [inputs.prompt]
