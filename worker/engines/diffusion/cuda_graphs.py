"""Runs the denoiser faster on a GPU: in batches of few sizes, each compiled or recorded once.

A GPU of today runs a small batch faster than Python can tell it what to do. A CUDA graph tells it a whole forward pass
at once, and `torch.compile` makes the pass itself shorter; both are made for one batch size, so batches are padded to
the next of a few sizes (`BUCKETS`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from configs.settings import Model
from worker.batch_size import BUCKETS
from worker.engines.diffusion.families.base import Conditions, Family
from worker.engines.diffusion.forward import DenoiseFn, ForwardPass

log = logging.getLogger(__name__)

#: Forward passes in one batch: guided requests take two each.
_PASSES = sorted({*BUCKETS, *(2 * padded_size for padded_size in BUCKETS)})
#: Recordings to keep: each holds the memory of its inputs, and all of them share that of the pass itself.
_MAX_GRAPHS = 32
#: Passes before a recording, which choose kernels and take workspaces.
_WARM_UP_PASSES = 3


def padded_size(passes: int) -> int:
    """The batch size that so many passes are padded to."""
    return next((size for size in _PASSES if size >= passes), -(-passes // 32) * 32)


def make_forward_pass(
    family: Family, model: Model, device: torch.device, has_active_loras: Callable[[], bool]
) -> ForwardPass:
    """The family's forward pass as the configuration wants it run. Without a GPU there is nothing to gain: as it is.

    `altered` says whether the weights are set to something that a recording knows nothing of.
    """
    if device.type != "cuda" or model.compile == "off":
        return ForwardPass(family.denoise)
    if model.compile in ("regional", "full"):
        _compile(family.denoiser, regional=model.compile == "regional")
    return ForwardPass(CudaGraphCache(family.denoise, has_active_loras), padded_size)


def _compile(denoiser: Any, *, regional: bool) -> None:
    # One version for each batch size and for each picture size, where the default gives up after eight.
    torch._dynamo.config.recompile_limit = 8 * len(_PASSES)
    if regional and denoiser._repeated_blocks:
        denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False)
        return
    if regional:
        log.warning("a %s names no repeated blocks: all of it is compiled", type(denoiser).__name__)
    denoiser.compile(fullgraph=True, dynamic=False)


class ForwardPassGraph:
    """A forward pass as a CUDA graph: its inputs are copied to where it reads them, its output from where it writes."""

    def __init__(
        self, denoise: DenoiseFn, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions, pool: Any
    ) -> None:
        self._samples, self._timesteps = samples.clone(), timesteps.clone()
        self._conditions = {name: value.clone() for name, value in conditions.items()}
        #: What was copied last: conditions stay the same from step to step while nobody joins or leaves.
        self._copied_conditions: Conditions | None = None
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_PASSES):
                denoise(self._samples, self._timesteps, self._conditions)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads decode pictures meanwhile, and may do with the device what a recording thread may not.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = denoise(self._samples, self._timesteps, self._conditions)

    def __call__(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The output, which later calls leave alone."""
        self._samples.copy_(samples)
        self._timesteps.copy_(timesteps)
        if conditions is not self._copied_conditions:
            for name, value in conditions.items():
                self._conditions[name].copy_(value)
            self._copied_conditions = conditions
        self._graph.replay()
        return self._output.clone()


class CudaGraphCache:
    """Records a forward pass for each shape that it meets; the least recently used recordings give way."""

    def __init__(self, denoise: DenoiseFn, has_active_loras: Callable[[], bool]) -> None:
        self._denoise = denoise
        self._has_active_loras = has_active_loras
        self._graphs: OrderedDict[tuple[Any, ...], ForwardPassGraph | None] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """As the denoiser itself."""
        if self._has_active_loras():
            return self._denoise(samples, timesteps, conditions)
        shape = _signature(samples, timesteps, conditions)
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(samples, timesteps, conditions)
            while len(self._graphs) > _MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(shape)
        graph = self._graphs[shape]
        return (graph or self._denoise)(samples, timesteps, conditions)

    def _capture(
        self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> ForwardPassGraph | None:
        """A recording; None where there can be none, and every pass of this shape is told one kernel at a time."""
        # Once as it is: what is wrong with the pass itself, such as its memory, is to be seen as that.
        self._denoise(samples, timesteps, conditions)
        try:
            return ForwardPassGraph(self._denoise, samples, timesteps, conditions, self._pool)
        except RuntimeError as error:
            log.warning("no CUDA graph for batches of %d: %s", len(samples), error)
            return None


def _signature(samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> tuple[Any, ...]:
    tensors = {"samples": samples, "timesteps": timesteps} | conditions
    return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(tensors.items()))
