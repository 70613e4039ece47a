"""A simulated accelerator: a step of b tasks sleeps t0 + t1 * b seconds, and the image follows from the seed.

It serves load, chaos and scaling tests of many workers on few cores. Messages, batches, checkpoints and failures are
real. Measurements with it describe the server, not a model, and must say so.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import psutil
from PIL import Image

from configs.model_settings import Model
from wire.inputs import SOURCES, ImageInputs
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
    UnstreamedRow,
    image_result,
    image_samples,
)
from worker.engines.sim_device import SimDevice

_SIDE = 16
_STATE_BYTES = 32


@dataclass
class SimRow(UnstreamedRow):
    """A task's state: a digest that every step changes, so that a lost or repeated step shows in the image."""

    inputs: ImageInputs
    state: bytes
    step: int
    steps: int
    #: Set when the device has finished its last step; None if that was at once.
    finished: threading.Event | None = None


class SimEngine:
    """Implements `StepEngine` by sleeping."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._sim = model.sim
        self._loras = model.loras is not None
        self._refuses = model.safety_checker == "refuse"
        self._fetched = False
        self._device = SimDevice() if model.sim.asynchronous else None

    def fetch(self) -> None:
        time.sleep(self._sim.load_s)
        self._fetched = True

    def load(self) -> None:
        if not self._fetched:
            self.fetch()
        time.sleep(self._sim.activate_s)

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def info(self) -> EngineInfo:
        modes = tuple(SOURCES)
        return EngineInfo("simulated", "sim", modes, checkpoints=True, loras=self._loras, reproducible=True)

    def limits(self) -> EngineLimits:
        return EngineLimits()

    def fingerprint(self) -> str:
        return f"sim {self._sim.t0_s} {self._sim.t1_s} {self._sim.memory_tasks}"

    def key(self, request: EngineRequest) -> BatchKey:
        inputs = request.image
        return inputs.width, inputs.height, inputs.loras

    def samples(self) -> list[EngineRequest]:
        return image_samples(self._model, self.info())

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        rows: list[Row | TaskError] = []
        for request in tasks:
            inputs, checkpoint = request.image, request.checkpoint
            pixels = inputs.width * inputs.height
            if list(map(len, request.sources)) != [3 * pixels, pixels][: SOURCES[inputs.mode]]:
                rows.append(TaskError("invalid", "the source images do not have the size of the output"))
            elif checkpoint is None:
                rows.append(SimRow(inputs, _first_state(inputs, request.sources), 0, inputs.steps))
            elif list(map(len, checkpoint.frames)) != [_STATE_BYTES] or checkpoint.step > inputs.steps:
                rows.append(TaskError("error", "the checkpoint is not from this engine"))
            else:
                rows.append(SimRow(inputs, bytes(checkpoint.frames[0]), checkpoint.step, inputs.steps))
        return rows

    def step(self, rows: Sequence[Row]) -> None:
        """Sleep t0 + t1 * b. Configured prompts make it fail, hang, crash or lose its device from their second step."""
        sim, own = self._sim, cast("Sequence[SimRow]", rows)
        if sim.memory_tasks is not None and len(rows) > sim.memory_tasks:
            raise OutOfMemory(f"{len(rows)} tasks were asked for, {sim.memory_tasks} fit")
        for row in own:
            if sim.crash_prompt in row.inputs.prompt and row.step >= 1:
                os._exit(70)
            if sim.stuck_prompt in row.inputs.prompt and row.step >= 1:
                _hang()
            if sim.device_prompt in row.inputs.prompt and row.step >= 1:
                raise DeviceLost("a lost device on demand")
            if sim.fail_prompt in row.inputs.prompt and row.step >= 1:
                raise RuntimeError("a failure on demand")
        seconds = sim.t0_s + sim.t1_s * len(rows)
        if sim.pixels is not None:
            seconds *= own[0].inputs.shape.volume / sim.pixels
        finished = None
        if self._device is None:
            time.sleep(seconds)
        else:
            finished = self._device.run(seconds)
        for row in own:
            row.finished = finished
            row.state = hashlib.sha256(row.state).digest()
            row.step += 1

    @property
    def steps_ahead(self) -> bool:
        return self._device is not None

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device is not None:
            self._device.synchronize()

    def render(self, row: Row) -> Callable[[], TaskResult]:
        """Return a callable that makes a pattern from the row's digest, at the requested size."""
        assert isinstance(row, SimRow)
        flagged = self._sim.flag_prompt in row.inputs.prompt
        if self._sim.nan_prompt in row.inputs.prompt:
            raise TaskError("error", "no image: the digest is not finite, on demand")
        if flagged and self._refuses:
            raise TaskError("unsafe", "the safety checker rejects the image, on demand")
        truncated = len(row.inputs.prompt) if self._sim.truncate_prompt in row.inputs.prompt else 0
        return functools.partial(
            _render, row.finished, row.state, row.inputs, flagged=flagged, truncated_tokens=truncated
        )

    def save(self, row: Row) -> Callable[[], Checkpoint]:
        assert isinstance(row, SimRow)
        return functools.partial(_save, row.finished, Checkpoint(row.step, [row.state]))

    def release(self, row: Row) -> None:
        del row

    def close(self) -> None:
        """End the device's thread."""
        if self._device is not None:
            self._device.close()

    def memory_bytes(self) -> int:
        """Return the memory of this process."""
        return int(psutil.Process().memory_info().rss)


def expected_image(inputs: ImageInputs, sources: Sequence[bytes] = ()) -> bytes:
    """Compute the image that a worker must return, for tests."""
    state = _first_state(inputs, sources)
    for _ in range(inputs.steps):
        state = hashlib.sha256(state).digest()
    return _render(None, state, inputs).data


def _hang() -> None:
    while True:
        time.sleep(60)


def _first_state(inputs: ImageInputs, sources: Sequence[bytes]) -> bytes:
    parts: list[object] = [inputs.prompt, inputs.negative_prompt, inputs.seed, inputs.guidance_scale, inputs.scheduler]
    if inputs.mode != "text":
        parts += [inputs.mode, inputs.strength, *(hashlib.sha256(source).hexdigest() for source in sources)]
    parts += [(lora.name, lora.scale) for lora in inputs.loras]
    return hashlib.sha256(repr(parts).encode()).digest()


def _render(finished: threading.Event | None, state: bytes, inputs: ImageInputs, **notes: Any) -> TaskResult:
    if finished is not None:
        finished.wait()
    pixels = hashlib.shake_256(state).digest(_SIDE * _SIDE * 3)
    image = Image.frombytes("RGB", (_SIDE, _SIDE), pixels).resize(
        (inputs.width, inputs.height), Image.Resampling.NEAREST
    )
    out = io.BytesIO()
    if inputs.output_format == "png":
        image.save(out, "PNG", compress_level=1)
    else:
        image.save(out, inputs.output_format.upper(), quality=inputs.output_quality)
    return image_result(out.getvalue(), inputs.output_format, **notes)


def _save(finished: threading.Event | None, checkpoint: Checkpoint) -> Checkpoint:
    if finished is not None:
        finished.wait()
    return checkpoint
