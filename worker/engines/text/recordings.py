"""Passes for rows of one token each as CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from worker.device_errors import device_error_kind
from worker.engines.text.attention_plan import AttentionPlan, DecodeGroup
from worker.engines.text.cache import KeyValueCache, RowBlocks, RowPart, block_table
from worker.engines.torch_device import to_device

log = logging.getLogger(__name__)

#: Rows of a recorded pass, of the numbers of blocks that are powers of two. Larger batches are not recorded: the device
#: takes longer for them than Python for their kernels.
_RECORDED_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_MIN_RECORDED_BLOCKS = 16
_MAX_RECORDINGS = 48
#: Of the keys that a layer of a recorded pass reads: it copies those of all its places.
_MAX_READ_BYTES = 256 << 20
#: Passes before a recording: they select kernels and allocate workspaces.
_PASSES_BEFORE = 2


class StaticPass:
    """A pass for up to `rows` rows of one token, in tensors that stay where they are: it can be recorded."""

    def __init__(self, model: Any, cache: KeyValueCache, rows: int, blocks: int, device: torch.device) -> None:
        self._model, self._cache, self._device = model, cache, device
        self._inputs = torch.zeros(3, rows, dtype=torch.long, device=device)
        self._table = torch.zeros(rows, blocks, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    def __call__(self, parts: Sequence[RowPart]) -> torch.Tensor:
        """Return logits as `ModelPass` does. Rows that are not there compute something in the spare block."""
        self._fill(parts)
        if self._graph is None:
            self._logits = self._compute()
        else:
            self._graph.replay()
        return self._logits[: len(parts)].clone()

    def record(self, pool: Any) -> None:
        """Record the pass with memory of this pool; calls replay it from now on."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_PASSES_BEFORE):
                self._compute()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._logits = self._compute()
        self._graph = graph

    def _fill(self, parts: Sequence[RowPart]) -> None:
        size, spare = self._cache.block_tokens, self._cache.spare_block
        inputs = torch.zeros(3, self._inputs.shape[1], dtype=torch.long)
        inputs[2] = spare * size
        slots = [part.blocks[part.past // size] * size + part.past % size for part in parts]
        own = [[part.tokens[0] for part in parts], [part.past for part in parts], slots]
        inputs[:, : len(parts)] = torch.tensor(own)
        table = torch.full(self._table.shape, spare)
        filled = block_table(parts, self._cache)
        table[: len(parts), : filled.shape[1]] = filled
        self._inputs.copy_(to_device(inputs, self._device))
        self._table.copy_(to_device(table, self._device))

    def _compute(self) -> torch.Tensor:
        tokens, positions, slots = self._inputs
        group = DecodeGroup(0, len(slots), RowBlocks(self._table, self._cache), positions, self._cache.block_tokens)
        plan = AttentionPlan(self._cache, self._cache.places(slots), decodes=[group])
        output = self._model(input_ids=tokens[None], position_ids=positions[None], use_cache=False, plan=plan)
        logits: torch.Tensor = output.logits[0].float()
        return logits


def recorded_size(rows: int, blocks: int) -> tuple[int, int] | None:
    """Return the numbers of rows and blocks of the recorded pass for so many; None if there is none."""
    size = next((each for each in _RECORDED_ROWS if each >= rows), None)
    return None if size is None else (size, max(_MIN_RECORDED_BLOCKS, 1 << (blocks - 1).bit_length()))


class Recordings:
    """Passes as CUDA graphs, which launch all their kernels at once. Each is checked before its first use."""

    def __init__(self, model: Any, cache: KeyValueCache, device: torch.device) -> None:
        self._model, self._cache, self._device = model, cache, device
        self._passes: dict[tuple[int, int], StaticPass] = {}
        #: One for all, because none runs beside another.
        self._pool: Any = None
        self._is_off = False

    def __call__(self, parts: Sequence[RowPart]) -> torch.Tensor | None:
        """Return the logits of rows of one token each, or None if they have to be computed otherwise."""
        blocks = max(part.past // self._cache.block_tokens + 1 for part in parts)
        size = recorded_size(len(parts), blocks)
        if self._is_off or size is None or size[0] * size[1] * self._cache.keys[0][0].nbytes > _MAX_READ_BYTES:
            return None
        if size not in self._passes and len(self._passes) == _MAX_RECORDINGS:
            return None
        if size not in self._passes:
            try:
                return self._record(size, parts)
            except Exception as error:  # the model runs Python code of many kinds, and so does torch
                if device_error_kind(error) == "lost":
                    raise
                log.warning("no more steps are recorded: %s", error)
                self._is_off = True
                return None
        return self._passes[size](parts)

    def _record(self, size: tuple[int, int], parts: Sequence[RowPart]) -> torch.Tensor:
        """Record a pass, and return its logits for these rows without the recording."""
        static = StaticPass(self._model, self._cache, *size, self._device)
        expected = static(parts)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        static.record(self._pool)
        if not torch.allclose(static(parts), expected, rtol=2e-2, atol=2e-2, equal_nan=True):
            raise RuntimeError("a recorded step computes something else")
        self._passes[size] = static
        return expected
