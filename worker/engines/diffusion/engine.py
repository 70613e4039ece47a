"""`DiffusionEngine`: a `StepEngine` with one forward pass for all rows and one sampler per row.

Rows of one batch share their size and adapters. They may differ in prompt, steps, position, sampler, guidance, seed and
mode. The results equal those of the diffusers pipeline for each request, up to rounding. Long LCM runs with strong
guidance amplify rounding until it is visible, in the pipeline as well. `reproducible` requests use passes of a fixed
size, so that their bits do not depend on other rows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import msgspec
import torch
from PIL import Image

from configs.model_settings import Model
from configs.pipeline_defaults import PipelineDefaults, with_defaults
from wire.inputs import SOURCES, ImageInputs
from wire.messages import EngineInfo
from worker.engine import (
    BatchKey,
    Checkpoint,
    EngineLimits,
    EngineRequest,
    OutOfMemory,
    Row,
    TaskError,
    TaskResult,
    default_inputs,
    image_result,
    image_samples,
)
from worker.engines import torch_device as devices
from worker.engines.diffusion.admission import ImageAdmission
from worker.engines.diffusion.checkpoint_source import describe_files
from worker.engines.diffusion.cuda_graphs import PreparedForwardPass, make_forward_pass
from worker.engines.diffusion.defaults import image_defaults, pipeline_defaults
from worker.engines.diffusion.device_engine import DeviceEngine
from worker.engines.diffusion.families.base import Family
from worker.engines.diffusion.forward import ForwardPass
from worker.engines.diffusion.image_encoding import encode_image
from worker.engines.diffusion.loading import load_family, read_family_pipeline
from worker.engines.diffusion.lora.loader import LoraLoader, sort_loras
from worker.engines.diffusion.row import DiffusionRow
from worker.engines.diffusion.safety_checker import SafetyChecker, make_safety_checker
from worker.engines.diffusion.sampling import batched_step
from worker.engines.diffusion.tiny_vae import load_tiny_vae
from worker.engines.diffusion.vae_decoding import StepGate, decode_with_retries, needs_tiles, tiled
from worker.engines.gpu_checks import check_build, open_gpu
from worker.engines.torch_device import (
    CompletionEvent,
    SideStream,
    record_event,
    translate_device_errors,
)
from worker.engines.weights import hold_weights, modules_of

log = logging.getLogger(__name__)


class DiffusionEngine(DeviceEngine):
    """A checkpoint of a supported family on one device."""

    _family: Family
    _defaults: PipelineDefaults
    _admission: ImageAdmission
    _loras: LoraLoader
    _forward: ForwardPass
    _checker: SafetyChecker | None
    #: A small autoencoder for previews.
    _tiny_vae: Any
    _decode_stream: SideStream
    _save_stream: SideStream

    def __init__(self, model: Model, device: str, pipeline: Any = None) -> None:
        """`device` is `cuda:N` or `cpu`, optionally with a slot number.

        A given `pipeline` is used instead of reading `model.path`.
        """
        self._model = model
        self._pipeline = pipeline
        self._device = devices.select_device(device)
        self._completion = CompletionEvent(self._device)
        #: Two concurrent decodes would need twice the memory and save no time.
        self._decode_lock = threading.Lock()
        self._step_gate = StepGate()

    # ---- model

    def fetch(self) -> None:
        check_build(self._device)
        self._pipeline = read_family_pipeline(self._model, self._device)

    def hold_weights(self) -> None:
        size = hold_weights(modules_of(self._pipeline))
        log.info("%d MiB of weights are in main memory", size >> 20)

    def load(self) -> None:
        devices.limit_cpu_threads(self._device)
        open_gpu(self._device)
        devices.limit_memory(self._device, self._model.gpu_memory)
        self._family = load_family(self._model, self._device, self._pipeline)
        self._defaults = pipeline_defaults(self._family.pipeline)
        self._model = with_defaults(self._model, self._defaults)
        self._loras = LoraLoader(self._family.pipeline, self._model.loras, self._model.max_loras, self._device)
        self._admission = ImageAdmission(self._family, self._model, self._loras, self._device)
        self._forward = make_forward_pass(self._family, self._model, self._device, lambda: self._loras.is_active)
        self._checker = make_safety_checker(self._family.pipeline, self._device)
        self._tiny_vae = load_tiny_vae(self._model, self._family, self._device)
        self._decode_stream, self._save_stream = SideStream(self._device), SideStream(self._device)

    def info(self) -> EngineInfo:
        return EngineInfo(
            pipeline=type(self._family.pipeline).__name__,
            batching="family",
            modes=self._family.modes,
            checkpoints=True,
            loras=self._model.loras is not None,
            reproducible=True,
            defaults=image_defaults(self._defaults),
            dtype=str(self._family.dtype).removeprefix("torch."),
        )

    def limits(self) -> EngineLimits:
        return EngineLimits()

    def fingerprint(self) -> str:
        model = f"{describe_files(self._model)}, {self.info().dtype}, compile {self._model.compile}"
        return f"{model}, {devices.environment(self._device, 'diffusers')}"

    def key(self, request: EngineRequest) -> BatchKey:
        """Return the batch key: rows with equal size, adapters and length of texts share a forward pass."""
        inputs = request.image
        texts = self._family.windows(inputs)
        return inputs.height, inputs.width, sort_loras(inputs.loras), self._reproducible(inputs), texts

    def _reproducible(self, inputs: ImageInputs) -> bool:
        return self._model.reproducible or inputs.reproducible

    def samples(self) -> list[EngineRequest]:
        return image_samples(self._model, self.info())

    @property
    def prepares_steps(self) -> bool:
        return isinstance(self._forward, PreparedForwardPass)

    def end_preparation(self) -> None:
        if isinstance(self._forward, PreparedForwardPass):
            self._forward.seal()

    # ---- admission

    @torch.inference_mode()
    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        return self._admission.admit(tasks)

    def needs_preparation(self, request: EngineRequest) -> bool:
        return self._admission.needs_preparation(request)

    @torch.inference_mode()
    def prepare(self, request: EngineRequest) -> object:
        return self._admission.prepare(request)

    def discard(self, prepared: object) -> None:
        """Nothing but tensors, which end with their last reference."""

    # ---- steps

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> None:
        """Run one forward pass and one sampler step for all rows.

        Raises `OutOfMemory`, `DeviceLost`, or the `TaskError` of a row whose sampler failed in its last step.
        """
        own = [_diffusion_row(row) for row in rows]
        for row in own:
            if row.sampler.failure is not None:
                raise row.sampler.failure
        with self._step_gate.step(), translate_device_errors(self._device, f"a step of {len(own)} images"):
            for row in own:
                row.apply_due_mask()
            reproducible = self._reproducible(own[0].inputs)
            # This is one group, unless an adapter's file was replaced between the admission of two rows.
            own = sorted(own, key=lambda row: row.lora_scales)
            outputs: list[torch.Tensor] = []
            for lora_scales, group in groupby(own, key=lambda row: row.lora_scales):
                self._loras.activate(lora_scales)
                outputs += self._forward(list(group), fixed_size=reproducible)
            batched_step.advance([row.sampler for row in own], outputs, reproducible)
            for row in own:
                row.apply_mask()
            self._completion.record()

    # ---- results

    @torch.inference_mode()
    def render(self, row: Row) -> Callable[[], TaskResult]:
        """Return a callable that decodes the row's current image; a preview shows the denoised estimate."""
        own = _diffusion_row(row)
        with translate_device_errors(self._device, "preparing to decode an image"):
            own.apply_due_mask()
            latents, ready = own.latents_to_decode(), record_event(self._device)
        return partial(self._decode_image, latents, own, own.step == own.steps, ready)

    @torch.inference_mode()
    def _decode_image(
        self, latents: torch.Tensor, row: DiffusionRow, final: bool, ready: torch.cuda.Event | None
    ) -> TaskResult:
        inputs = row.inputs
        try:
            with (
                self._decode_lock,
                translate_device_errors(self._device, "decoding an image"),
                self._decode_stream.after(ready, latents),
            ):
                if not torch.isfinite(latents).all():
                    raise TaskError(
                        "error",
                        f"no image: the latents of scheduler '{inputs.scheduler}' are not finite in {latents.dtype}",
                    )
                attempts = self._decode_attempts(latents, inputs, final=final)
                image = decode_with_retries(attempts, self._step_gate, self._device)
                flagged = final and self._is_unsafe(image)
        except OutOfMemory as error:
            raise TaskError("out_of_memory", str(error)) from error
        data = encode_image(image, inputs.output_format, inputs.output_quality)
        return image_result(data, inputs.output_format, flagged=flagged, truncated_tokens=row.truncated_tokens)

    def _decode_attempts(
        self, latents: torch.Tensor, inputs: ImageInputs, *, final: bool
    ) -> list[Callable[[], Image.Image]]:
        """Return ways to decode, each with less memory than the one before."""
        if self._tiny_vae is not None and not final:
            return [partial(self._family.decode_preview, latents, inputs, self._tiny_vae)]
        plain = partial(self._family.decode, latents, inputs)
        in_tiles = partial(self._family.decode, latents, inputs, tiled(self._family.vae))
        tiling = self._model.vae.tiling
        if needs_tiles(tiling, inputs.width * inputs.height, self._device):
            return [in_tiles, in_tiles]
        # Tiles change the pixels a little, and another load must not change those of a reproducible request.
        may_tile = tiling != "off" and not self._reproducible(inputs)
        return [plain, plain, *([in_tiles] if may_tile else [])]

    def _is_unsafe(self, image: Image.Image) -> bool:
        """Return true if the safety checker flags the image. Raises `TaskError` if the policy is `refuse`."""
        objects = self._checker is not None and self._checker.is_unsafe(image)
        if objects and self._model.safety_checker == "refuse":
            raise TaskError("unsafe", "the model's safety checker rejected the image")
        return objects

    @torch.inference_mode()
    def save(self, row: Row) -> Callable[[], Checkpoint]:
        own = _diffusion_row(row)
        with translate_device_errors(self._device, "preparing a checkpoint"):
            own.apply_due_mask()
            return partial(self._checkpoint, own.sampler.save(), own.step, record_event(self._device))

    @torch.inference_mode()
    def _checkpoint(self, blob: Callable[[], bytes], step: int, ready: torch.cuda.Event | None) -> Checkpoint:
        with translate_device_errors(self._device, "saving a checkpoint"), self._save_stream.after(ready):
            return Checkpoint(step, [blob()])

    def release(self, row: Row) -> None:
        own = _diffusion_row(row)
        self._forward.forget(own)
        self._loras.release(own.lora_scales)

    def warm_up(self) -> None:
        """Run a step and a decode at the default settings, to select kernels and allocate memory."""
        inputs = msgspec.structs.replace(default_inputs(self._model), mode=self._family.modes[0])
        pixels = inputs.width * inputs.height
        sources = [bytes(pixels * channels) for channels in (3, 1)][: SOURCES[inputs.mode]]
        [row] = self.admit([EngineRequest(inputs, sources)])
        if isinstance(row, TaskError):
            raise row
        self.step([row])
        self.render(row)()
        self.release(row)


def _diffusion_row(row: Row) -> DiffusionRow:
    assert isinstance(row, DiffusionRow)
    return row
