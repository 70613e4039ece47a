"""A compiled denoiser that no request waits for: shapes that were not prepared run uncompiled."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from worker.device_errors import device_error_kind
from worker.engines.diffusion.families.base import Conditions
from worker.engines.diffusion.forward import DenoiseFn

log = logging.getLogger(__name__)

#: Versions of one block: batch sizes times picture sizes. torch's own limits are 8 and 256.
_MAX_VERSIONS = 1024


def compile_denoiser(denoiser: Any, *, regional: bool, backend: str = "inductor") -> None:
    """Compile the denoiser's repeated blocks or all of it, one version per shape, when it first runs with a shape."""
    torch._dynamo.config.recompile_limit = _MAX_VERSIONS
    torch._dynamo.config.accumulated_recompile_limit = 16 * _MAX_VERSIONS
    if regional and denoiser._repeated_blocks:
        denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)
        return
    if regional:
        log.warning("a %s has no _repeated_blocks: compiling the full module", type(denoiser).__name__)
    denoiser.compile(fullgraph=True, dynamic=False, backend=backend)


class CompiledPass:
    """Runs forward passes of a compiled denoiser, or uncompiled where there is no version for their shape."""

    def __init__(self, denoise: DenoiseFn) -> None:
        self._denoise = denoise
        self._compiled: set[Hashable] = set()
        self._uncompiled: set[Hashable] = set()
        self._is_sealed = False

    def seal(self) -> None:
        """Compile nothing from now on: requests would wait for it."""
        self._is_sealed = True

    def __call__(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        shape = pass_shape(samples, timesteps, conditions)
        if shape not in self._compiled and (self._is_sealed or shape in self._uncompiled):
            return self._run_uncompiled(shape, "it was not prepared", samples, timesteps, conditions)
        try:
            output = self._denoise(samples, timesteps, conditions)
        except (FailOnRecompileLimitHit, TorchDynamoException) as error:
            if device_error_kind(error) in ("out_of_memory", "lost"):
                raise
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        else:
            self._compiled.add(shape)
            return output
        return self._run_uncompiled(shape, reason, samples, timesteps, conditions)

    def _run_uncompiled(
        self, shape: Hashable, reason: str, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        if shape not in self._uncompiled:
            self._uncompiled.add(shape)
            log.warning("passes of %s run uncompiled: %s", list(samples.shape), reason)
        with torch.compiler.set_stance("force_eager"):
            return self._denoise(samples, timesteps, conditions)


def pass_shape(samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> Hashable:
    """Return the shapes and dtypes of all inputs of a pass."""
    tensors = {"samples": samples, "timesteps": timesteps} | conditions
    return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(tensors.items()))
