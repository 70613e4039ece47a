"""Copies a pipeline for one request: weights are shared, mutable state is copied.

A module is replaced by a shallow copy with the same weights and other methods (`forward`, `encode`, `decode`). Type
checks and configuration reads work as for the original.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import diffusers
import torch

from configs.samplers import MODEL_DEFAULT
from worker.engines.diffusion.generic.pipeline_thread import PipelineThread
from worker.engines.diffusion.generic.progress import SamplerProgress, scheduler_for
from worker.engines.diffusion.vae_decoding import StepGate, Tiling, decode_with_retries, needs_tiles, tiled
from worker.engines.torch_device import SideStream, record_event

_DENOISERS = ("diffusers.models.unets.", "diffusers.models.transformers.", "diffusers.models.controlnets.")
_AUTOENCODERS = "diffusers.models.autoencoders."
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def is_denoiser(part: Any) -> bool:
    return isinstance(part, torch.nn.Module) and type(part).__module__.startswith(_DENOISERS)


def is_autoencoder(part: Any) -> bool:
    return isinstance(part, torch.nn.Module) and type(part).__module__.startswith(_AUTOENCODERS)


class VaeProxy:
    """Serializes the use of the shared autoencoder and runs it on a side stream."""

    def __init__(self, device: torch.device, tiling: Tiling = "auto") -> None:
        self.device = device
        self._tiling = tiling
        #: Some autoencoders keep state while they run, and two decodes would need twice the memory.
        self.lock = threading.RLock()
        self.stream = SideStream(device)

    def decode(self, autoencoder: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Decode, in tiles if the images are large or do not fit into memory. Raises torch's errors."""
        plain = functools.partial(autoencoder.decode, *args, **kwargs)
        in_tiles = functools.partial(tiled(autoencoder).decode, *args, **kwargs)
        latents = args[0] if args and isinstance(args[0], torch.Tensor) else None
        # Autoencoders shrink each side by at least eight.
        pixels = 0 if latents is None or latents.ndim < 4 else 64 * latents.shape[-1] * latents.shape[-2]
        attempts = [in_tiles] if needs_tiles(self._tiling, pixels, self.device) else [plain, in_tiles]
        # No gate: the step may be waiting for another request's pipeline, which may wait for this autoencoder.
        return decode_with_retries(attempts[: 1 if self._tiling == "off" else 2], StepGate(), self.device)


class PipelineCopier:
    """Copies a pipeline and its nested pipelines for one request. Equal parts share one replacement."""

    def __init__(self, thread: PipelineThread[Any], vae: VaeProxy, progress: SamplerProgress, scheduler: str) -> None:
        """`scheduler` is the name in the request."""
        self._thread = thread
        self._vae = vae
        self._progress = progress
        self._name = scheduler
        self._made: dict[int, Any] = {}
        #: Contexts of the final decode; closed when the pipeline returns.
        self.afterwards = contextlib.ExitStack()

    def copy(self, pipeline: Any) -> Any:
        """Return the copy. Raises `TaskError` for an incompatible scheduler."""
        scheduler = getattr(pipeline, "scheduler", None)
        self._made[id(scheduler)] = scheduler_for(scheduler, self._name, type(pipeline))
        if scheduler is not None:
            self._progress.track(self._made[id(scheduler)])
        made = self._copy(pipeline)
        self._made.clear()
        return made

    def _copy(self, pipeline: Any) -> Any:
        made = copy.copy(pipeline)
        for name, part in vars(pipeline).items():
            if id(part) not in self._made:
                self._made[id(part)] = self._stand_in(part)
            # Attribute assignment would update the pipeline's configuration.
            vars(made)[name] = self._made[id(part)]
        return made

    def _stand_in(self, part: Any) -> Any:
        if isinstance(part, diffusers.DiffusionPipeline):
            return self._copy(part)
        if isinstance(part, diffusers.SchedulerMixin):
            own = scheduler_for(part, MODEL_DEFAULT, type(part))
            self._progress.track(own)
            return own
        if is_denoiser(part):
            return _twin(part, forward=functools.partial(self._thread.call_denoiser, part))
        if is_autoencoder(part):
            encode, decode = functools.partial(self._encode, part), functools.partial(self._decode, part)
            # The precision is shared and fixed at load. Some pipelines change it during a decode, which would affect
            # other requests.
            return _twin(part, encode=encode, decode=decode, to=lambda *_, **__: part)
        return part

    def _encode(self, autoencoder: Any, *args: Any, **kwargs: Any) -> Any:
        with self._vae.lock:
            return autoencoder.encode(*_cast(args, autoencoder), **kwargs)

    def _decode(self, autoencoder: Any, *args: Any, **kwargs: Any) -> Any:
        if self._progress.is_complete and not self._thread.is_rendering:
            event = record_event(self._vae.device)
            self._thread.leave_step_loop()
            self.afterwards.enter_context(self._vae.lock)
            tensors = [part for part in args if isinstance(part, torch.Tensor)]
            self.afterwards.enter_context(self._vae.stream.after(event, *tensors))
        with self._vae.lock:
            return self._vae.decode(autoencoder, _cast(args, autoencoder), kwargs)


def _cast(args: tuple[Any, ...], module: Any) -> list[Any]:
    return [
        part.to(module.dtype) if isinstance(part, torch.Tensor) and part.is_floating_point() else part for part in args
    ]


def _twin(module: torch.nn.Module, **other: Any) -> torch.nn.Module:
    """Return a shallow copy with the same weights and these attributes replaced."""
    twin = copy.copy(module)
    for name in _HOOKS:
        vars(twin)[name] = OrderedDict()  # hooks run with the original's forward pass
    vars(twin)["_compiled_call_impl"] = None
    vars(twin).update(other)
    return twin
