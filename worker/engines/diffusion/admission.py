"""Admission of images: a row for each request, and the part of it that runs beside the steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from configs.model_settings import Model
from wire.inputs import ImageInputs
from worker.engine import Checkpoint, EngineRequest, Row, TaskError
from worker.engines.diffusion.families.base import Family
from worker.engines.diffusion.families.prompt_cache import Encoded, PromptCache
from worker.engines.diffusion.lora.layers import LoraScales
from worker.engines.diffusion.lora.loader import LoraLoader
from worker.engines.diffusion.preparation import PreparedImage, prepare_start
from worker.engines.diffusion.row import DiffusionRow
from worker.engines.diffusion.sampling import SchedulerSetup, start_sampler
from worker.engines.diffusion.sampling.plan import get_plan, has_plan
from worker.engines.torch_device import SideStream, keep_for_steps, to_device, translate_device_errors

#: 256 texts take 30 MB of GPU memory for Stable Diffusion 1.5, and 1 GB for FLUX.
_TEXTS = 256


class ImageAdmission:
    """Admits images of one family. `prepare` runs in a thread of its own, all else in the loop's."""

    def __init__(self, family: Family, model: Model, loras: LoraLoader, device: torch.device) -> None:
        self._family = family
        self._is_reproducible = model.reproducible
        self._loras = loras
        self._device = device
        self._prompt_cache = PromptCache(family.encode_windows, _TEXTS)
        self._stream = SideStream(device)

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        """Return a row for each task. All tasks are validated before anything is computed.

        Raises `OutOfMemory` and `DeviceLost`.
        """
        answers: list[Row | TaskError | None] = [None] * len(tasks)
        groups: dict[tuple[LoraScales, bool, int], list[int]] = {}
        with (
            self._acquired_loras() as acquired,
            translate_device_errors(self._device, f"preparing {len(tasks)} images"),
        ):
            for place, task in enumerate(tasks):
                try:
                    self._family.validate(task.image)
                    acquired[place] = self._loras.acquire(task.image.loras)
                except TaskError as error:
                    answers[place] = error
                else:
                    alike = acquired[place], self._reproducible(task.image), self._family.windows(task.image)
                    groups.setdefault(alike, []).append(place)
            for (lora_scales, reproducible, windows), places in groups.items():
                texts = self._encode([tasks[place].image for place in places], lora_scales, reproducible, windows)
                for place in places:
                    answers[place] = self._start(tasks[place], texts, lora_scales)
            for place, answer in enumerate(answers):
                if isinstance(answer, DiffusionRow):
                    del acquired[place]  # the row owns them from now on
        return [answer for answer in answers if answer is not None]

    @contextmanager
    def _acquired_loras(self) -> Iterator[dict[int, LoraScales]]:
        """Yield acquired adapters by task index; entries left at the end are released."""
        acquired: dict[int, LoraScales] = {}
        try:
            yield acquired
        finally:
            for lora_scales in acquired.values():
                self._loras.release(lora_scales)

    def _encode(
        self, requests: Sequence[ImageInputs], lora_scales: LoraScales, one_by_one: bool, windows: int
    ) -> dict[str, Encoded]:
        texts = list(dict.fromkeys(text for inputs in requests for text in self._family.texts(inputs)))
        state = self._loras.text_encoder_scales(lora_scales)
        found = self._prompt_cache.find(texts, encoder_state=state, one_by_one=one_by_one, windows=windows)
        if len(found) < len(texts):
            with self._loras.text_encoders(lora_scales):
                found = self._prompt_cache.get(texts, encoder_state=state, one_by_one=one_by_one, windows=windows)
        return found

    def _start(
        self, task: EngineRequest, texts: dict[str, Encoded], lora_scales: LoraScales
    ) -> DiffusionRow | TaskError:
        family, inputs = self._family, task.image
        try:
            prepared = task.prepared if isinstance(task.prepared, PreparedImage) else prepare_start(family, task)
            keep_for_steps(prepared.tensors())
            start_latents = prepared.start
            setup = family.scheduler_setup(inputs)
            sampler = start_sampler(inputs.scheduler, family.scheduler, setup, prepared.generator())
            sampler.start(start_latents.noise, start_latents.image_latents)
            if task.checkpoint is not None:
                sampler.restore(_single_frame(task.checkpoint), self._device)
                if sampler.step != task.checkpoint.step:
                    raise TaskError(
                        "error", f"the checkpoint's state is at step {sampler.step}, not {task.checkpoint.step}"
                    )
        except TaskError as error:
            return error
        encoded = [texts[text] for text in family.texts(inputs)]
        keep_for_steps(tensor for text in encoded for tensor in text.values())
        conditions = family.conditions(inputs, encoded)
        guidance = None
        if family.is_guided(inputs):
            guidance = torch.full([1] * sampler.latents.ndim, inputs.guidance_scale, device=self._device)
        if start_latents.channels is not None:
            conditions["channels"] = start_latents.channels.expand(2 if family.is_guided(inputs) else 1, -1, -1, -1)
        timesteps = to_device(sampler.timesteps.to(torch.float32), self._device)
        return DiffusionRow(
            inputs,
            sampler,
            conditions,
            timesteps,
            guidance,
            start_latents.mask_state,
            lora_scales,
            family.truncated_tokens(inputs),
        )

    # ---- beside the steps

    def needs_preparation(self, request: EngineRequest) -> bool:
        if request.sources or not has_plan(*self._plan_of(request.image)):
            return True
        try:
            lora_scales = self._loras.loaded_scales(request.image.loras)
            return lora_scales is None or not self._has_texts(request.image, lora_scales)
        except TaskError:
            return False

    def prepare(self, request: EngineRequest) -> PreparedImage | None:
        """Prepare all but the layers of adapters. Returns None if these have to be put into the model first."""
        inputs = request.image
        self._family.validate(inputs)
        get_plan(*self._plan_of(inputs))
        lora_scales = self._loras.loaded_scales(inputs.loras)
        if lora_scales is None:
            self._loras.read(inputs.loras)
            return None
        if self._loras.text_encoder_scales(lora_scales):
            if not self._has_texts(inputs, lora_scales):
                return None
        else:
            with translate_device_errors(self._device, "encoding a text"), self._stream.after(None):
                self._encode([inputs], (), self._reproducible(inputs), self._family.windows(inputs))
        with translate_device_errors(self._device, "preparing an image"), self._stream.after(None):
            prepared = prepare_start(self._family, request)
        self._stream.synchronize()
        return prepared

    def _plan_of(self, inputs: ImageInputs) -> tuple[str, Any, SchedulerSetup]:
        return inputs.scheduler, self._family.scheduler, self._family.scheduler_setup(inputs)

    def _has_texts(self, inputs: ImageInputs, lora_scales: LoraScales) -> bool:
        texts = set(self._family.texts(inputs))
        state, windows = self._loras.text_encoder_scales(lora_scales), self._family.windows(inputs)
        found = self._prompt_cache.find(
            list(texts), encoder_state=state, one_by_one=self._reproducible(inputs), windows=windows
        )
        return len(found) == len(texts)

    def _reproducible(self, inputs: ImageInputs) -> bool:
        return self._is_reproducible or inputs.reproducible


def _single_frame(checkpoint: Checkpoint) -> bytes:
    if len(checkpoint.frames) != 1:
        raise TaskError("error", f"a checkpoint of this engine has one frame, got {len(checkpoint.frames)}")
    return checkpoint.frames[0]
