"""Faster forward passes on a GPU: CUDA graphs and `torch.compile` for a few padded batch sizes.

Python launches kernels more slowly than a modern GPU runs a small batch. A CUDA graph launches a complete forward pass
at once; `torch.compile` shortens the pass itself. Both are made for one batch size, so batches are padded to the next
of `BUCKETS`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch

from configs.model_settings import Model
from worker.batch_size import BUCKETS
from worker.device_errors import device_error_kind
from worker.engines.diffusion.compiled_pass import CompiledPass, compile_denoiser, pass_shape
from worker.engines.diffusion.families.base import Conditions, Family
from worker.engines.diffusion.forward import DenoiseFn, ForwardPass

log = logging.getLogger(__name__)

#: Numbers of passes in one batch. A guided request takes two.
_PASSES = sorted({*BUCKETS, *(2 * size for size in BUCKETS)})
#: Larger passes are not recorded: the device takes longer for them than Python for their kernels.
MAX_RECORDED_PASSES = 16
#: Memory that recordings may take, as a part of the device's. Each holds its inputs and what the driver adds; all share
#: the memory of the pass itself.
_MAX_MEMORY = 1 / 8
#: Passes before a capture: they select kernels and allocate workspaces.
_WARM_UP_PASSES = 3


def padded_size(passes: int) -> int:
    """Return the smallest compiled batch size that holds this many passes."""
    return next((size for size in _PASSES if size >= passes), -(-passes // 32) * 32)


class PreparedForwardPass(ForwardPass):
    """A forward pass with compiled or recorded versions, which are made before the first request only."""

    def __init__(self, family: Family, model: Model, has_active_loras: Callable[[], bool]) -> None:
        self._compiled: CompiledPass | None = None
        denoise: DenoiseFn = family.denoise
        if model.compile in ("regional", "full"):
            compile_denoiser(family.denoiser, regional=model.compile == "regional")
            denoise = self._compiled = CompiledPass(family.denoise)
        self._graphs = CudaGraphCache(denoise, has_active_loras)
        self._has_active_loras = has_active_loras
        super().__init__(self._graphs, self._padded)

    def seal(self) -> None:
        """Compile and record nothing from now on."""
        self._graphs.seal()
        if self._compiled is not None:
            self._compiled.seal()

    def _padded(self, passes: int) -> int:
        """Return the number of passes to run: padding costs what it pads, and saves only where a version exists."""
        if self._has_active_loras() or (self._compiled is None and passes > MAX_RECORDED_PASSES):
            return passes
        return padded_size(passes)


def make_forward_pass(
    family: Family, model: Model, device: torch.device, has_active_loras: Callable[[], bool]
) -> ForwardPass:
    """Return the family's forward pass, run as `model.compile` says. A CPU always runs it unchanged.

    `has_active_loras` is true while the weights differ from those that a graph captured.
    """
    if device.type != "cuda" or model.compile == "off":
        return ForwardPass(family.denoise)
    return PreparedForwardPass(family, model, has_active_loras)


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
        loop_stream = torch.cuda.current_stream()
        try:
            # Other threads decode images at the same time and may call functions that a capture forbids.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self._output = denoise(self._samples, self._timesteps, self._conditions)
        except BaseException:
            # A capture that was invalidated ends before torch restores the stream.
            torch.cuda.set_stream(loop_stream)
            raise

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
    """One CUDA graph per shape of the inputs. Shapes without one run as they are."""

    def __init__(
        self,
        denoise: DenoiseFn,
        has_active_loras: Callable[[], bool],
        record: Callable[..., DenoiseFn] | None = None,
        free_bytes: Callable[[], tuple[int, int]] = torch.cuda.mem_get_info,
    ) -> None:
        """`record` makes a graph from the pass and its inputs; `free_bytes` returns free and total device memory."""
        self._denoise = denoise
        self._has_active_loras = has_active_loras
        self._record = record or functools.partial(_record, pool=torch.cuda.graph_pool_handle())
        self._free_bytes = free_bytes
        #: None: this shape cannot be recorded.
        self._graphs: dict[Hashable, DenoiseFn | None] = {}
        self._bytes = 0
        self._is_sealed = False

    def seal(self) -> None:
        """Record nothing from now on: requests would wait for it."""
        self._is_sealed = True

    def __call__(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        if self._has_active_loras() or len(samples) > MAX_RECORDED_PASSES:
            return self._denoise(samples, timesteps, conditions)
        shape = pass_shape(samples, timesteps, conditions)
        if shape not in self._graphs and not self._is_sealed:
            self._capture(shape, samples, timesteps, conditions)
        return (self._graphs.get(shape) or self._denoise)(samples, timesteps, conditions)

    def _capture(self, shape: Hashable, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> None:
        """Capture a graph if there is memory for it. Raises the errors of the pass itself, and of a lost device."""
        # Run once eagerly: errors of the pass itself, such as out of memory, must not look like capture errors.
        self._denoise(samples, timesteps, conditions)
        free, total = self._free_bytes()
        if self._bytes > total * _MAX_MEMORY:
            log.info("no CUDA graph for batches of %d: the others take %d MiB", len(samples), self._bytes >> 20)
            self._graphs[shape] = None
            return
        try:
            self._graphs[shape] = self._record(self._denoise, samples, timesteps, conditions)
        except RuntimeError as error:
            kind = device_error_kind(error)
            if kind == "lost" and "captur" not in str(error):
                raise
            log.warning("no CUDA graph for batches of %d: %s", len(samples), error)
            if kind != "out_of_memory":  # otherwise there may be memory later
                self._graphs[shape] = None
        else:
            self._bytes += max(free - self._free_bytes()[0], 0)


def _record(
    denoise: DenoiseFn, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions, pool: Any
) -> DenoiseFn:
    return ForwardPassGraph(denoise, samples, timesteps, conditions, pool)
