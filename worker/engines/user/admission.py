"""Turns the parts of a call into a row of the engine: decode, find the batch key, restore a saved state, start."""

from __future__ import annotations

import functools
import logging
import operator
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from configs.text import is_utf8
from wire.inputs import CallInputs
from worker.engine import BatchKey, Checkpoint, EngineRequest, TaskError
from worker.engines.user.failures import batch_error, call_error, task_error
from worker.engines.user.rows import CallRow
from worker.engines.user.saved_state import SavedState, decode_state
from worker.engines.user.setup import Program

log = logging.getLogger(__name__)

#: Decoded items of calls that have a key and have not started yet.
_MAX_DECODED = 64


class CallAdmission:
    """Admits calls to one engine."""

    def __init__(
        self, program: Program, key: Callable[[Any], Hashable] | None, *, checkpoints: bool, decode_threads: int
    ) -> None:
        """`key` is the engine's own method, if it has one. `decode_threads`: 0 decodes in the caller's thread."""
        self._program = program
        self._key = key if callable(key) else None
        self._checkpoints = checkpoints
        self._decoded: OrderedDict[int, tuple[EngineRequest, Any]] = OrderedDict()
        # Hooks of LitServe are called in one thread only.
        is_parallel = decode_threads > 0 and program.prepare is None and not program.decoder.is_small
        self._pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode") if is_parallel else None

    def key(self, request: EngineRequest) -> BatchKey:
        """Return `key(item)` of a class that has it. Raises `TaskError` for inputs that it does not take.

        A text, by which step times are reported, in place of numbers and tuples.
        """
        if self._key is None:
            return None
        item = self._decode(request)
        if self._program.decoder.is_small:
            self._decoded[id(request)] = request, item
        if len(self._decoded) > _MAX_DECODED:
            self._decoded.popitem(last=False)
        try:
            key = self._key(item)
            hash(key)
            bool(operator.eq(key, key))  # the step loop compares keys, and must not fail there
            if isinstance(key, int | float | tuple):
                key = repr(key)
        except BaseException as error:
            raise task_error(error) from error
        if isinstance(key, str) and not is_utf8(key):
            return ascii(key)  # it names the shape of the batch in messages
        return key

    def decode_ahead(self, requests: Sequence[EngineRequest]) -> None:
        """Decode these images side by side: one by one they would hold up the device."""
        if self._pool is None or len(requests) < 2:
            return
        for request, item in zip(requests, self._pool.map(self._decoded_or_none, requests), strict=True):
            self._decoded[id(request)] = request, item

    def _decoded_or_none(self, request: EngineRequest) -> Any:
        try:
            return self._decode(request)
        except TaskError:  # `start` decodes it again and reports it
            return None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def start(self, request: EngineRequest) -> CallRow:
        """Raises `TaskError`, `OutOfMemory` or `DeviceLost`."""
        inputs, checkpoint = request.inputs, request.checkpoint
        _, item = self._decoded.pop(id(request), (None, None))
        if item is None:
            item = self._decode(request)
        is_streaming = isinstance(inputs, CallInputs) and inputs.stream
        row = CallRow(item, is_streaming, functools.partial(self._decode, request))
        try:
            saved = None
            if checkpoint is not None:
                saved, row.chunk_count = self._restorable(checkpoint)
                row.step = checkpoint.step
            self._program.runner.start(row, saved)
        except BaseException as error:
            failure = batch_error(error)
            if isinstance(failure, TaskError) and not isinstance(error, TaskError):
                log.info("a call cannot start", exc_info=error)
            raise failure from error
        return row

    def _restorable(self, checkpoint: Checkpoint) -> SavedState:
        if not self._checkpoints:
            raise TaskError("error", "this engine does not support checkpoints")
        return decode_state(checkpoint.frames)

    def _decode(self, request: EngineRequest) -> Any:
        """Raises `TaskError`."""
        inputs = request.inputs
        if not isinstance(inputs, CallInputs):
            raise TaskError("invalid", "this model takes calls and generates no images")
        try:
            value = self._program.decoder.decode(inputs.parts, request.sources)
            return value if self._program.prepare is None else self._program.prepare(value)
        except TaskError:
            raise
        except BaseException as error:  # a hook of LitServe, or the constructor of the input's class
            log.info("a request cannot be decoded", exc_info=error)
            raise call_error(error) from error
