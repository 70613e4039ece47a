"""Runs a class that a user wrote as a `StepEngine`."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from configs.settings import Model
from wire.messages import CallInputs, EngineInfo
from worker.engine import (
    BatchKey,
    Checkpoint,
    DeviceLost,
    EngineLimits,
    EngineRequest,
    OutOfMemory,
    Row,
    TaskError,
    TaskResult,
)
from worker.engines.user import device as devices
from worker.engines.user.description import describe, examples
from worker.engines.user.failures import batch_error, task_error
from worker.engines.user.images import ImageBounds
from worker.engines.user.inputs import InputDecoder
from worker.engines.user.interface import is_litserve
from worker.engines.user.loading import load_class, make_instance
from worker.engines.user.outputs import OutputEncoder
from worker.engines.user.rows import CallRow
from worker.engines.user.saved_state import SavedState, decode_state, encode_state
from worker.engines.user.setup import Program, make_program

log = logging.getLogger(__name__)

#: Decoded items of tasks that have a key and are not admitted yet.
_MAX_DECODED = 64


class UserEngine:
    """Implements `StepEngine` for a class of `predict`, of steps, or of LitServe's hooks."""

    def __init__(self, model: Model, device: str, make: Callable[[], Any] | None = None) -> None:
        """`make` returns the instance; by default the class that the model names is imported."""
        self._model = model
        self._make = make or functools.partial(_make_instance, model)
        self._device = devices.device_name(device)
        self._bounds = ImageBounds(model.limits.max_source_pixels, model.limits.max_source_side)
        self._decoded: OrderedDict[int, tuple[EngineRequest, Any]] = OrderedDict()
        self._instance: Any = None
        self._program: Program
        self._info = EngineInfo()

    # ---- life cycle

    def fetch(self) -> None:
        """Import the class and make the instance. Raises `UnsupportedModel`."""
        self._instance = engine = self._make()
        if is_litserve(engine) and isinstance(self._model.max_batch_size, int):
            engine.max_batch_size = self._model.max_batch_size  # it decides how the hooks are called
        self._encoder = OutputEncoder(getattr(engine, "media_type", ""))
        self._program = make_program(engine, self._bounds, self._emit)
        own_key = getattr(engine, "key", None)
        self._key: Callable[[Any], Hashable] | None = own_key if callable(own_key) else None
        self._info = describe(engine, self._program, self._bounds)

    def load(self) -> None:
        """Call `load(device)`, or LitServe's `setup(device)`."""
        if self._instance is None:
            self.fetch()
        self._program.load(self._device)
        devices.limit_cpu_threads(self._device)

    def warm_up(self) -> None:
        """Call `warm_up()`, or run the first example."""
        own = getattr(self._instance, "warm_up", None)
        if callable(own):
            own()
            return
        for sample in self.samples()[:1]:
            [row] = self.admit([sample])
            if isinstance(row, TaskError):
                raise row
            while row.step < row.steps:
                self.step([row])
            result = self.render(row)
            if callable(result):
                result()
            self.release(row)

    def close(self) -> None:
        """Call `close()` and end the event loop of an async engine."""
        own = getattr(self._instance, "close", None)
        if callable(own):
            own()
        if self._program.thread is not None:
            self._program.thread.close()

    # ---- properties

    def info(self) -> EngineInfo:
        return self._info

    def limits(self) -> EngineLimits:
        return self._program.limits

    def summary(self) -> str:
        """Return how the class is called, for people."""
        return self._program.interface.summary()

    def result_problem(self, result: TaskResult) -> str:
        """Return how a result differs from the annotation, or an empty text. The values of a stream are not checked."""
        if self._program.interface.is_stream:
            return ""
        try:
            InputDecoder(self._program.interface.output_type, self._bounds).decode(result.parts, result.frames)
        except TaskError as error:
            return str(error)
        return ""

    def fingerprint(self) -> str:
        file = inspect.getsourcefile(type(self._instance)) or ""
        source = Path(file).read_bytes() if Path(file).is_file() else b""
        code = hashlib.sha256(source).hexdigest()
        return f"{self._model.engine} {code} {self._model.options} {self._device} Python {sys.version}"

    def memory_bytes(self) -> int:
        return devices.memory_bytes(self._device)

    def synchronize(self) -> None:
        devices.synchronize(self._device)

    def samples(self) -> list[EngineRequest]:
        """Return a call for each of `examples`, or for `example()`; none if the class has neither."""
        return [self.request(each) for each in examples(self._instance)]

    def request(self, value: Any) -> EngineRequest:
        """Return a call of this input. Raises `TaskError` if it cannot be sent."""
        parts, frames = self._encoder.encode(value)
        return EngineRequest(CallInputs(parts), frames)

    # ---- calls

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
        except Exception as error:
            raise task_error(error) from error
        return repr(key) if isinstance(key, int | float | tuple) else key

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        rows: list[Row | TaskError] = []
        for task in tasks:
            try:
                rows.append(self._start(task))
            except TaskError as error:
                rows.append(error)
            except (OutOfMemory, DeviceLost):
                for row in rows:
                    if isinstance(row, CallRow):
                        self.release(row)
                raise
        return rows

    def step(self, rows: Sequence[Row]) -> None:
        self._program.runner.step(rows)  # type: ignore[arg-type]  # rows of this engine

    def render(self, row: Row) -> TaskResult | Callable[[], TaskResult]:
        """Encode the result now, unless that takes long."""
        assert isinstance(row, CallRow)
        if row.error is not None:
            raise row.error
        if self._program.interface.is_stream:
            if row.is_streaming:
                return TaskResult((), ())
            row.output = row.collected()
        output = row.output
        if self._encoder.is_slow(output):
            return lambda: TaskResult(*self._encoder.encode(output))
        return TaskResult(*self._encoder.encode(output))

    def save(self, row: Row) -> Callable[[], Checkpoint] | None:
        """Return the frames of `save(state)`, made now; None for an engine without it."""
        assert isinstance(row, CallRow)
        if not self._info.checkpoints:
            return None
        checkpoint = Checkpoint(row.step, encode_state(SavedState(self._instance.save(row.state), row.chunk_count)))
        return lambda: checkpoint

    def release(self, row: Row) -> None:
        assert isinstance(row, CallRow)
        self._program.runner.release(row)

    def _start(self, request: EngineRequest) -> CallRow:
        """Raises `TaskError`, `OutOfMemory` or `DeviceLost`."""
        inputs, checkpoint = request.inputs, request.checkpoint
        _, item = self._decoded.pop(id(request), (None, None))
        if item is None:
            item = self._decode(request)
        row = CallRow(item, isinstance(inputs, CallInputs) and inputs.stream)
        try:
            saved = None
            if checkpoint is not None:
                saved, row.chunk_count = self._restorable(checkpoint)
                row.step = checkpoint.step
            self._program.runner.start(row, saved)
        except (Exception, SystemExit) as error:
            failure = batch_error(error)
            if isinstance(failure, TaskError) and not isinstance(error, TaskError):
                log.info("a call cannot start", exc_info=error)
            raise failure from error
        return row

    def _restorable(self, checkpoint: Checkpoint) -> SavedState:
        if not self._info.checkpoints:
            raise TaskError("error", "this engine does not support checkpoints")
        return decode_state(checkpoint.frames)

    def _decode(self, request: EngineRequest) -> Any:
        """Raises `TaskError`."""
        inputs = request.inputs
        if not isinstance(inputs, CallInputs):
            raise TaskError("invalid", "this model takes calls and generates no images")
        value = self._program.decoder.decode(inputs.parts, request.sources)
        if self._program.prepare is None:
            return value
        try:
            return self._program.prepare(value)
        except (Exception, SystemExit) as error:
            log.info("a request cannot be decoded", exc_info=error)
            raise task_error(error) from error

    def _emit(self, row: CallRow, value: Any) -> None:
        """Send a value of a stream, or collect it. Raises `TaskError`."""
        if not row.is_streaming:
            row.add_value(value)
            return
        for part, frame in zip(*self._encoder.encode(value), strict=True):
            row.add_chunk(part, frame)


def _make_instance(model: Model) -> Any:
    return make_instance(load_class(model.engine, model.path), model.options)
