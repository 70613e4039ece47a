"""Faster forward passes on a GPU: CUDA graphs and `torch.compile` for a few padded batch sizes.

Python launches kernels more slowly than a modern GPU runs a small batch. A CUDA graph launches a complete forward pass
at once; `torch.compile` shortens the pass itself. Both are made for one batch size, so batches are padded to the next
of `BUCKETS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from cachetools import LRUCache

from configs.settings import Model
from worker.batch_size import BUCKETS
from worker.engines.diffusion.families.base import Conditions, Family
from worker.engines.diffusion.forward import DenoiseFn, ForwardPass

log = logging.getLogger(__name__)

#: Numbers of passes in one batch. A guided request takes two.
_PASSES = sorted({*BUCKETS, *(2 * size for size in BUCKETS)})
#: Each graph holds the memory of its inputs. All graphs share the memory of the pass itself.
_MAX_GRAPHS = 32
#: Passes before a capture: they select kernels and allocate workspaces.
_WARM_UP_PASSES = 3


def padded_size(passes: int) -> int:
    """Return the smallest compiled batch size that holds this many passes."""
    return next((size for size in _PASSES if size >= passes), -(-passes // 32) * 32)


def make_forward_pass(
    family: Family, model: Model, device: torch.device, has_active_loras: Callable[[], bool]
) -> ForwardPass:
    """Return the family's forward pass, run as `model.compile` says. A CPU always runs it unchanged.

    `has_active_loras` is true while the weights differ from those that a graph captured.
    """
    if device.type != "cuda" or model.compile == "off":
        return ForwardPass(family.denoise)
    if model.compile in ("regional", "full"):
        _compile(family.denoiser, regional=model.compile == "regional")
    return ForwardPass(CudaGraphCache(family.denoise, has_active_loras), padded_size)


def _compile(denoiser: Any, *, regional: bool) -> None:
    # One version per batch size and image size. The default limit is eight.
    torch._dynamo.config.recompile_limit = 8 * len(_PASSES)
    if regional and denoiser._repeated_blocks:
        denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False)
        return
    if regional:
        log.warning("a %s has no _repeated_blocks: compiling the full module", type(denoiser).__name__)
    denoiser.compile(fullgraph=True, dynamic=False)


class ForwardPassGraph:
    """A forward pass captured as a CUDA graph, with static input and output buffers."""

    def __init__(
        self, denoise: DenoiseFn, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions, pool: Any
    ) -> None:
        self._samples, self._timesteps = samples.clone(), timesteps.clone()
        self._conditions = {name: value.clone() for name, value in conditions.items()}
        #: The conditions copied last. They stay the same between steps while no row joins or leaves.
        self._copied_conditions: Conditions | None = None
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_PASSES):
                denoise(self._samples, self._timesteps, self._conditions)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads decode images at the same time and may call functions that a capture forbids.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = denoise(self._samples, self._timesteps, self._conditions)

    def __call__(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Return a copy of the output, which later calls do not overwrite."""
        self._samples.copy_(samples)
        self._timesteps.copy_(timesteps)
        if conditions is not self._copied_conditions:
            for name, value in conditions.items():
                self._conditions[name].copy_(value)
            self._copied_conditions = conditions
        self._graph.replay()
        return self._output.clone()


class CudaGraphCache:
    """Captures one CUDA graph per input shape; the least recently used graphs are dropped."""

    def __init__(self, denoise: DenoiseFn, has_active_loras: Callable[[], bool]) -> None:
        self._denoise = denoise
        self._has_active_loras = has_active_loras
        self._graphs: LRUCache[tuple[Any, ...], ForwardPassGraph | None] = LRUCache(_MAX_GRAPHS)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        if self._has_active_loras():
            return self._denoise(samples, timesteps, conditions)
        shape = _signature(samples, timesteps, conditions)
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(samples, timesteps, conditions)
        return (self._graphs[shape] or self._denoise)(samples, timesteps, conditions)

    def _capture(
        self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> ForwardPassGraph | None:
        """Capture a graph. Return None on failure: passes of this shape then run eagerly."""
        # Run once eagerly: errors of the pass itself, such as out of memory, must not look like capture errors.
        self._denoise(samples, timesteps, conditions)
        try:
            return ForwardPassGraph(self._denoise, samples, timesteps, conditions, self._pool)
        except RuntimeError as error:
            log.warning("no CUDA graph for batches of %d: %s", len(samples), error)
            return None


def _signature(samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> tuple[Any, ...]:
    tensors = {"samples": samples, "timesteps": timesteps} | conditions
    return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(tensors.items()))
