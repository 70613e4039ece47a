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
from worker.engines.diffusion.forward import Denoise, Forward

log = logging.getLogger(__name__)

#: Forward passes in one batch: guided requests take two each.
_PASSES = sorted({*BUCKETS, *(2 * bucket for bucket in BUCKETS)})
#: Recordings to keep: each holds the memory of its inputs, and all of them share that of the pass itself.
_RECORDINGS = 32
#: Passes before a recording, which choose kernels and take workspaces.
_WARM = 3


def bucket(passes: int) -> int:
    """The batch size that so many passes are padded to."""
    return next((size for size in _PASSES if size >= passes), -(-passes // 32) * 32)


def forward_of(family: Family, model: Model, device: torch.device, altered: Callable[[], bool]) -> Forward:
    """The family's forward pass as the configuration wants it run. Without a GPU there is nothing to gain: as it is.

    `altered` says whether the weights are set to something that a recording knows nothing of.
    """
    if device.type != "cuda" or model.compile == "off":
        return Forward(family.denoise)
    if model.compile in ("regional", "full"):
        _compile(family.denoiser, regional=model.compile == "regional")
    return Forward(Recorded(family.denoise, altered), bucket)


def _compile(denoiser: Any, *, regional: bool) -> None:
    # One version for each batch size and for each picture size, where the default gives up after eight.
    torch._dynamo.config.recompile_limit = 8 * len(_PASSES)
    if regional and denoiser._repeated_blocks:
        denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False)
        return
    if regional:
        log.warning("a %s names no repeated blocks: all of it is compiled", type(denoiser).__name__)
    denoiser.compile(fullgraph=True, dynamic=False)


class Recording:
    """A forward pass as a CUDA graph: its inputs are copied to where it reads them, its output from where it writes."""

    def __init__(
        self, denoise: Denoise, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions, pool: Any
    ) -> None:
        self._samples, self._timesteps = samples.clone(), timesteps.clone()
        self._conditions = {name: value.clone() for name, value in conditions.items()}
        #: What was copied last: conditions stay the same from step to step while nobody joins or leaves.
        self._told: Conditions | None = None
        lane = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        lane.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(lane):
            for _ in range(_WARM):
                denoise(self._samples, self._timesteps, self._conditions)
        torch.cuda.current_stream().wait_stream(lane)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads decode pictures meanwhile, and may do with the device what a recording thread may not.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = denoise(self._samples, self._timesteps, self._conditions)

    def __call__(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The output, which later calls leave alone."""
        self._samples.copy_(samples)
        self._timesteps.copy_(timesteps)
        if conditions is not self._told:
            for name, value in conditions.items():
                self._conditions[name].copy_(value)
            self._told = conditions
        self._graph.replay()
        return self._output.clone()


class Recorded:
    """Records a forward pass for each shape that it meets; the least recently used recordings give way."""

    def __init__(self, denoise: Denoise, altered: Callable[[], bool]) -> None:
        self._denoise = denoise
        self._altered = altered
        self._recordings: OrderedDict[tuple[Any, ...], Recording | None] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """As the denoiser itself."""
        if self._altered():
            return self._denoise(samples, timesteps, conditions)
        shape = _signature(samples, timesteps, conditions)
        if shape not in self._recordings:
            self._recordings[shape] = self._record(samples, timesteps, conditions)
            while len(self._recordings) > _RECORDINGS:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(shape)
        recording = self._recordings[shape]
        return (recording or self._denoise)(samples, timesteps, conditions)

    def _record(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> Recording | None:
        """A recording; None where there can be none, and every pass of this shape is told one kernel at a time."""
        # Once as it is: what is wrong with the pass itself, such as its memory, is to be seen as that.
        self._denoise(samples, timesteps, conditions)
        try:
            return Recording(self._denoise, samples, timesteps, conditions, self._pool)
        except RuntimeError as error:
            log.warning("no CUDA graph for batches of %d: %s", len(samples), error)
            return None


def _signature(samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> tuple[Any, ...]:
    tensors = {"samples": samples, "timesteps": timesteps} | conditions
    return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(tensors.items()))
