"""`GenericEngine`: a `StepEngine` for any diffusers pipeline; see the package's docstring.

The results equal those of the pipeline for each request, up to the rounding of other batch sizes. A row that is alone
in its step is equal bit for bit. The engine checks at load that batching changes no more than rounding; otherwise each
row gets its own forward pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

from configs.model_settings import Model
from configs.pipeline_defaults import PipelineDefaults, with_defaults
from wire.inputs import GenerationMode, ImageInputs
from wire.messages import EngineInfo, PassSharing
from worker.engine import (
    BatchKey,
    Checkpoint,
    DeviceLost,
    EngineLimits,
    EngineRequest,
    Row,
    TaskError,
    TaskResult,
    UnsupportedModel,
    image_result,
    image_samples,
)
from worker.engines import torch_device as devices
from worker.engines.diffusion.checkpoint_source import describe_files
from worker.engines.diffusion.defaults import image_defaults, pipeline_defaults
from worker.engines.diffusion.device_engine import DeviceEngine
from worker.engines.diffusion.generic.arguments import PipelineArguments
from worker.engines.diffusion.generic.call_batching import group_calls, run_calls
from worker.engines.diffusion.generic.pipeline_copy import PipelineCopier, VaeProxy, is_autoencoder, is_denoiser
from worker.engines.diffusion.generic.pipeline_thread import PipelineThread
from worker.engines.diffusion.generic.probe import probe_request
from worker.engines.diffusion.generic.progress import SamplerProgress, source_code_of
from worker.engines.diffusion.generic.row import GenericRow, PipelineImage, extract_image
from worker.engines.diffusion.generic.sharing_probe import probe_sharing
from worker.engines.diffusion.image_encoding import encode_image
from worker.engines.diffusion.loading import DTYPES, pipeline_class, read_pipeline, to_usable_dtype
from worker.engines.diffusion.safety_checker import SafetyChecker, make_safety_checker
from worker.engines.gpu_checks import check_build, open_gpu
from worker.engines.torch_device import CompletionEvent, translate_device_errors
from worker.engines.weights import hold_weights, modules_of

log = logging.getLogger(__name__)


class GenericEngine(DeviceEngine):
    """Any diffusers pipeline on one device."""

    _pipeline: Any
    _defaults: PipelineDefaults
    _arguments: PipelineArguments
    _vae: VaeProxy
    _denoisers: list[Any]
    _controlnet: torch.nn.Module | None
    _checker: SafetyChecker | None
    _completion: CompletionEvent

    def __init__(self, model: Model, device: str) -> None:
        self._model = model
        self._device = devices.select_device(device)
        self._pipeline = None
        self._modes: tuple[GenerationMode, ...] = ()
        self._sharing: PassSharing = "always"
        #: The only image size of a pipeline without size arguments.
        self._size: tuple[int, int] | None = None
        #: Denoiser calls per sampler step in the last request, by whether it used guidance.
        self._calls_per_step: dict[bool, float] = {}

    # ---- model

    def fetch(self) -> None:
        check_build(self._device)
        self._pipeline = read_pipeline(self._model, self._device, pipeline_class(self._model))

    def hold_weights(self) -> None:
        size = hold_weights(modules_of(self._pipeline))
        log.info("%d MiB of weights are in main memory", size >> 20)

    def load(self) -> None:
        """Move the pipeline to the device and probe it. Raises `UnsupportedModel` if it cannot serve requests."""
        devices.limit_cpu_threads(self._device)
        open_gpu(self._device)
        devices.limit_memory(self._device, self._model.gpu_memory)
        if self._pipeline is None:
            self.fetch()
        self._pipeline = pipeline = to_usable_dtype(self._model, self._pipeline.to(self._device), self._device)
        kind: type = type(pipeline)
        self._arguments = PipelineArguments(pipeline)
        self._defaults = pipeline_defaults(pipeline)
        configured_size = self._model.defaults.size
        self._model = with_defaults(self._model, self._defaults)
        self._vae = VaeProxy(self._device, self._model.vae.tiling)
        self._completion = CompletionEvent(self._device)
        self._controlnet = getattr(pipeline, "controlnet", None)
        parts = vars(pipeline).values()  # parts of nested pipelines are also listed in its own
        self._denoisers = [part for part in parts if is_denoiser(part) and part is not self._controlnet]
        if not self._denoisers:
            raise UnsupportedModel(f"a {kind.__name__} has no denoiser (UNet or transformer)")
        self._fix_autoencoder_dtype()
        self._checker = None
        if isinstance(getattr(pipeline, "safety_checker", None), StableDiffusionSafetyChecker):
            self._checker = make_safety_checker(pipeline, self._device)
            pipeline.safety_checker = None  # the pipeline would return a black image
        if not self._arguments.takes_prompt:
            log.warning("a %s takes no prompt: the prompts of requests are ignored", kind.__name__)
        if self._model.compile != "off":
            log.warning("'compile' is ignored: a %s is not one of the supported families", kind.__name__)
        self._probe(configured_size)

    def _fix_autoencoder_dtype(self) -> None:
        """Choose the precision once. A pipeline would change it for each decode: see `PipelineCopier`."""
        configured = self._model.vae.dtype
        kind: type = type(self._pipeline)
        upcasts = "force_upcast" in source_code_of(kind)
        for part in filter(is_autoencoder, vars(self._pipeline).values()):
            if configured != "auto":
                part.to(DTYPES[configured])
            elif upcasts and part.config.get("force_upcast") and part.dtype == torch.float16:
                part.to(torch.float32)

    def warm_up(self) -> None:
        """The probe in `load` has already warmed the model up."""

    def info(self) -> EngineInfo:
        return EngineInfo(
            pipeline=type(self._pipeline).__name__,
            batching="generic",
            modes=self._modes,
            shares_passes=self._sharing,
            defaults=image_defaults(self._defaults),
            reproducible=True,
            dtype=str(self._denoisers[0].dtype).removeprefix("torch."),
        )

    def limits(self) -> EngineLimits:
        return EngineLimits()

    def fingerprint(self) -> str:
        about = self.info()
        model = f"{describe_files(self._model)}, {about.pipeline}, {about.batching}, {about.dtype}"
        return f"{model}, {devices.environment(self._device, 'diffusers')}"

    def key(self, request: EngineRequest) -> BatchKey:
        """Rows of one size may share a step; their denoiser calls decide about the forward pass."""
        inputs = request.image
        return inputs.height, inputs.width

    def samples(self) -> list[EngineRequest]:
        return image_samples(self._model, self.info())

    # ---- requests

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        rows: list[Row | TaskError] = []
        try:
            for task in tasks:
                prepared = task.prepared
                try:
                    if isinstance(prepared, GenericRow) and not prepared.thread.is_cancelled:
                        rows.append(prepared)
                    else:
                        rows.append(self._start_row(task))
                except TaskError as error:
                    rows.append(error)
        except Exception:  # the caller learns of no row, so release all
            for row in rows:
                if isinstance(row, GenericRow):
                    row.thread.cancel()
            raise
        return rows

    def needs_preparation(self, request: EngineRequest) -> bool:
        """Return true: the pipeline encodes texts and images before its first denoiser call."""
        del request
        return True

    def prepare(self, request: EngineRequest) -> object:
        """Run the pipeline to its first denoiser call."""
        return self._start_row(request)

    def discard(self, prepared: object) -> None:
        if isinstance(prepared, GenericRow):
            prepared.thread.cancel()

    def _start_row(self, task: EngineRequest) -> GenericRow:
        inputs = task.image
        if task.checkpoint is not None:
            raise TaskError("error", "this engine does not support checkpoints")
        if inputs.mode not in self._modes:
            raise TaskError("invalid", f"this model supports mode {' or '.join(self._modes)}, not {inputs.mode}")
        if self._size is not None and self._size != (inputs.width, inputs.height) and inputs.mode == "text":
            raise TaskError("invalid", "this model only generates {}x{}".format(*self._size))
        arguments = self._arguments.for_request(inputs, task.sources)
        thread: PipelineThread[PipelineImage] = PipelineThread(self._device)
        progress = SamplerProgress(inputs.steps)
        copier = PipelineCopier(thread, self._vae, progress, inputs.scheduler)
        pipeline = copier.copy(self._pipeline)
        progress.set_pipeline(pipeline)
        thread.start(partial(self._run_pipeline, pipeline, arguments, copier, progress))
        if thread.failure is not None and not thread.is_rendering:
            raise thread.failure
        is_separate = inputs.reproducible or self._model.reproducible or self._sharing == "never"
        calls = self._calls_per_step.get(inputs.guidance_scale > 1, 1.0)
        return GenericRow(
            inputs, thread, progress, controlnet=self._controlnet, is_separate=is_separate, calls_per_step=calls
        )

    def _run_pipeline(
        self, pipeline: Any, arguments: dict[str, Any], copier: PipelineCopier, progress: SamplerProgress
    ) -> PipelineImage:
        try:
            with copier.afterwards:
                made = extract_image(pipeline(**arguments))
                if self._checker is not None and self._checker.is_unsafe(made.to_pil()):
                    return PipelineImage(made.pixels, flagged=True)
                return made
        finally:
            progress.close()

    def step(self, rows: Sequence[Row]) -> None:
        """Run one denoiser call for each row. Raises the `TaskError` of a row whose pipeline failed."""
        own: list[GenericRow] = []
        for row in rows:
            assert isinstance(row, GenericRow)
            if row.failure is not None:
                raise row.failure
            own.append(row)
        with torch.inference_mode(), translate_device_errors(self._device, f"a step of {len(own)} images"):
            # If the denoiser fails, a row that has passed its ControlNet remains there; its step is unchanged.
            while at_controlnet := [row for row in own if row.is_at_controlnet]:
                self._run_pending_calls(at_controlnet)
            self._run_pending_calls([row for row in own if row.thread.pending_call is not None])
            self._completion.record()
        for row in own:
            self._calls_per_step[row.inputs.guidance_scale > 1] = row.calls_per_step

    def _run_pending_calls(self, rows: Sequence[GenericRow]) -> None:
        """Run the pending calls of these rows and resume them. If a call raises, all stay pending."""
        calls = {}
        for row in rows:
            call = row.thread.pending_call
            assert call is not None
            if row.is_separate:
                call.isolate()
            calls[call] = row
        answered = [
            (call, answer)
            for group in group_calls(calls, pad=self._sharing == "always")
            for call, answer in zip(group, run_calls(group), strict=True)
        ]
        for call, answer in answered:
            calls[call].resume(answer)
        for row in rows:
            if isinstance(row.thread.failure, DeviceLost):
                raise row.thread.failure

    def render(self, row: Row) -> Callable[[], TaskResult]:
        """Return a callable that waits for the finished image. There are no previews."""
        assert isinstance(row, GenericRow)
        return partial(self._render_image, row.thread if row.step == row.steps else None, row.inputs)

    def _render_image(self, thread: PipelineThread[PipelineImage] | None, inputs: ImageInputs) -> TaskResult:
        if thread is None:
            raise TaskError("error", "this model has no image before the last step")
        made = thread.result()
        if made.flagged and self._model.safety_checker == "refuse":
            raise TaskError("unsafe", "the model's safety checker rejected the image")
        data = encode_image(made.to_pil(), inputs.output_format, inputs.output_quality)
        truncated = self._arguments.truncated_tokens(inputs)
        return image_result(data, inputs.output_format, flagged=made.flagged, truncated_tokens=truncated)

    def save(self, row: Row) -> Callable[[], Checkpoint] | None:
        """Return None: the state on a pipeline's stack cannot be saved."""
        del row
        return None

    def release(self, row: Row) -> None:
        """End the row's thread, unless it is rendering its image."""
        assert isinstance(row, GenericRow)
        row.thread.cancel()

    # ---- probe

    def _probe(self, configured_size: str | None = None) -> None:
        """Find the working modes, check batching and warm up, with a few requests."""
        name, candidates = type(self._pipeline).__name__, self._arguments.modes()
        self._modes = tuple(candidates)
        errors: dict[GenerationMode, str] = {}
        before = self._attention_processors()
        for mode in candidates:
            try:
                self.release(self._start_row(probe_request(self._model, mode)))
            except TaskError as error:
                errors[mode] = error.message
        self._modes = tuple(mode for mode in candidates if mode not in errors)
        if not self._modes:
            raise UnsupportedModel(f"a {name} supports no mode: {errors}")
        if self._attention_processors() != before:
            raise UnsupportedModel(f"a {name} modifies the shared denoiser")
        try:
            self._sharing = probe_sharing(
                self._start_row, self._model, self._modes[0], name, takes_text=self._arguments.takes_text
            )
            row = self._start_row(probe_request(self._model, self._modes[0]))
            while row.step < row.steps:
                self.step([row])
            size = row.thread.result().to_pil().size
        except TaskError as error:
            raise UnsupportedModel(f"a {name} generated no image: {error.message}") from error
        if "text" in self._modes and not self._arguments.takes_size:
            self._size = size
            only = "{}x{}".format(*size)
            if configured_size is None:
                self._defaults = self._defaults._replace(side=size[0])
                defaults = self._model.defaults.model_copy(update={"size": only})
                self._model = self._model.model_copy(update={"defaults": defaults})
            elif configured_size != only:
                raise UnsupportedModel(f"a {name} only generates {only}: set defaults.size to it")

    def _attention_processors(self) -> list[Any]:
        return [own for part in self._denoisers for own in getattr(part, "attn_processors", {}).values()]
