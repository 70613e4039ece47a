"""Runs a class that a user wrote as a `StepEngine`."""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.model_settings import Model
from wire.inputs import CallInputs
from wire.messages import EngineInfo
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
    UnsupportedModel,
)
from worker.engines.user import device as devices
from worker.engines.user.admission import CallAdmission
from worker.engines.user.description import describe, examples
from worker.engines.user.images import ImageBounds
from worker.engines.user.inputs import InputDecoder
from worker.engines.user.interface import is_litserve
from worker.engines.user.loading import explained_failure, load_class, make_instance, source_file
from worker.engines.user.outputs import OutputEncoder
from worker.engines.user.result_size import result_bytes
from worker.engines.user.rows import CallRow
from worker.engines.user.saved_state import SavedState, encode_state
from worker.engines.user.setup import Program, make_program

log = logging.getLogger(__name__)

#: Threads that decode images for a GPU.
_DECODE_THREADS = 4


class UserEngine:
    """Implements `StepEngine` for a class of `predict`, of steps, or of LitServe's hooks."""

    def __init__(self, model: Model, device: str, make: Callable[[], Any] | None = None) -> None:
        """`make` returns the instance; by default the class that the model names is imported."""
        self._model = model
        self._make = make or functools.partial(_make_instance, model)
        self._device = devices.device_name(device)
        self._bounds = ImageBounds(model.limits.max_source_pixels, model.limits.max_source_side)
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
        self._info = describe(engine, self._program, self._bounds)
        # On a CPU one thread per worker: there are as many workers as cores.
        self._admission = CallAdmission(
            self._program,
            getattr(engine, "key", None),
            checkpoints=self._info.checkpoints,
            decode_threads=_DECODE_THREADS if self._device.startswith("cuda") else 0,
        )

    def load(self) -> None:
        """Call `load(device)`, or LitServe's `setup(device)`."""
        if self._instance is None:
            self.fetch()
        devices.limit_cpu_threads(self._device)  # before, so that the engine may set its own number
        with explained_failure(self._instance, "load"):
            self._program.load(self._device)

    def warm_up(self) -> None:
        """Call `warm_up()`, or run the first example."""
        own = getattr(self._instance, "warm_up", None)
        if callable(own):
            with explained_failure(self._instance, "warm_up"):
                own()
            return
        try:
            for value in examples(self._instance)[:1]:
                self._run(self.request(value))
        except TaskError as error:
            raise UnsupportedModel(f"the example of {self._info.pipeline} failed: {error}") from error

    def _run(self, request: EngineRequest) -> None:
        """Run one call to its end. Raises `TaskError`, `OutOfMemory` or `DeviceLost`."""
        [row] = self.admit([request])
        if isinstance(row, TaskError):
            raise row
        try:
            while row.step < row.steps:
                self.step([row])
            result = self.render(row)
            if callable(result):
                result()
        finally:
            self.release(row)

    def close(self) -> None:
        """Call `close()` and end the event loop of an async engine."""
        own = getattr(self._instance, "close", None)
        if callable(own):
            own()
        self._admission.close()
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
        """Return how a result differs from the annotation, or an empty text.

        Values of a stream are not checked, nor those of a class that only the engine knows.
        """
        if self._program.interface.is_stream:
            return ""
        try:
            decoder = InputDecoder(self._program.interface.output_type, self._bounds)
        except Exception as error:  # pydantic has no schema for the type
            log.info("the result cannot be compared with its annotation: %s", error)
            return ""
        try:
            decoder.decode(result.parts, result.frames)
        except TaskError as error:
            return str(error)
        return ""

    def fingerprint(self) -> str:
        file = source_file(type(self._instance))
        source = Path(file).read_bytes() if Path(file).is_file() else b""
        code = hashlib.sha256(source).hexdigest()
        return f"{self._model.engine} {code} {self._model.options} {self._device} Python {sys.version}"

    def memory_bytes(self) -> int:
        return devices.memory_bytes(self._device)

    def synchronize(self) -> None:
        devices.synchronize(self._device)

    def samples(self) -> list[EngineRequest]:
        """Return a call for each of `examples`, or for `example()`; none if the class has neither.

        None either for async engines: they wait for something else, and many calls at once could cost money there.
        """
        if self._program.interface.is_async and not self._program.interface.is_batched:
            return []
        return self.examples()

    def examples(self) -> list[EngineRequest]:
        """Return a call for each example of the class."""
        return [self.request(each) for each in examples(self._instance)]

    def request(self, value: Any) -> EngineRequest:
        """Return a call of this input. Raises `TaskError` if it cannot be sent."""
        parts, frames = self._encoder.encode(value)
        return EngineRequest(CallInputs(parts), frames)

    # ---- calls

    def key(self, request: EngineRequest) -> BatchKey:
        return self._admission.key(request)

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        rows: list[Row | TaskError] = []
        self._admission.decode_ahead(tasks)
        for task in tasks:
            try:
                rows.append(self._admission.start(task))
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

    def _emit(self, row: CallRow, value: Any) -> None:
        """Send a value of a stream, or collect it. Raises `TaskError`."""
        if not row.is_streaming:
            row.add_value(value, result_bytes(value))
            return
        for part, frame in zip(*self._encoder.encode(value), strict=True):
            row.add_chunk(part, frame)


def _make_instance(model: Model) -> Any:
    return make_instance(load_class(model.engine, model.path), model.options)
