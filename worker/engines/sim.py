"""A simulated accelerator: a step of b tasks takes t0 + t1 * b seconds of sleep, and the picture follows from the seed.

For load, chaos and scaling tests of many workers on few cores. Everything around it is real: messages, batches,
checkpoints, failures. Anything measured on it measures the server, not a model, and must say so.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
from PIL import Image

from configs.schema import Model
from wire.messages import ImageInputs
from worker.engine import BatchKey, Checkpoint, Row, TaskError

_SIDE = 16


@dataclass
class SimRow:
    """A task's state: a digest that every step changes, so that a lost or doubled step shows in the picture."""

    inputs: ImageInputs
    state: bytes
    step: int
    steps: int


class SimEngine:
    """Implements `StepEngine` on a clock."""

    def __init__(self, model: Model) -> None:
        self._sim = model.sim

    def load(self) -> None:
        """Take as long as the configuration says."""
        time.sleep(self._sim.load_s)

    def key(self, inputs: ImageInputs) -> BatchKey:
        """Pictures of one size share a step."""
        return (inputs.width, inputs.height)

    def admit(self, tasks: Sequence[tuple[ImageInputs, Checkpoint | None]]) -> list[Row | TaskError]:
        """Rows from the start or from a checkpoint."""
        return [self._row(inputs, checkpoint) for inputs, checkpoint in tasks]

    def _row(self, inputs: ImageInputs, checkpoint: Checkpoint | None) -> SimRow | TaskError:
        if checkpoint is None:
            return SimRow(inputs, _first_state(inputs), 0, inputs.steps)
        if len(checkpoint.frames) != 1 or len(checkpoint.frames[0]) != 32 or checkpoint.step > inputs.steps:
            return TaskError("error", "the checkpoint is not one of this engine")
        return SimRow(inputs, bytes(checkpoint.frames[0]), checkpoint.step, inputs.steps)

    def step(self, rows: Sequence[Row]) -> None:
        """Sleep t0 + t1 * b. A crash prompt ends the process; a fail prompt raises from its second step on."""
        for row in rows:
            assert isinstance(row, SimRow)
            if self._sim.crash_prompt in row.inputs.prompt and row.step >= 1:
                os._exit(70)
            if self._sim.fail_prompt in row.inputs.prompt and row.step >= 1:
                raise RuntimeError("a failure on demand")
        time.sleep(self._sim.t0_s + self._sim.t1_s * len(rows))
        for row in rows:
            assert isinstance(row, SimRow)
            row.state = hashlib.sha256(row.state).digest()
            row.step += 1

    def render(self, row: Row) -> Callable[[], bytes]:
        """A small pattern grown from the row's digest, at the size that was asked for."""
        assert isinstance(row, SimRow)
        state, inputs = row.state, row.inputs
        return lambda: _picture(state, inputs)

    def evict(self, row: Row) -> Checkpoint | None:
        """The digest and the step: all there is."""
        assert isinstance(row, SimRow)
        return Checkpoint(row.step, [row.state])

    def memory_bytes(self) -> int:
        """Memory of this process: there is no device."""
        return int(psutil.Process().memory_info().rss)


def expected_picture(inputs: ImageInputs) -> bytes:
    """What a worker must answer, computed without one: tests hold every answer to it."""
    state = _first_state(inputs)
    for _ in range(inputs.steps):
        state = hashlib.sha256(state).digest()
    return _picture(state, inputs)


def _first_state(inputs: ImageInputs) -> bytes:
    parts = (inputs.prompt, inputs.negative_prompt, inputs.seed, inputs.guidance_scale, inputs.scheduler)
    return hashlib.sha256(repr(parts).encode()).digest()


def _picture(state: bytes, inputs: ImageInputs) -> bytes:
    pixels = hashlib.shake_256(state).digest(_SIDE * _SIDE * 3)
    image = Image.frombytes("RGB", (_SIDE, _SIDE), pixels).resize(
        (inputs.width, inputs.height), Image.Resampling.NEAREST
    )
    out = io.BytesIO()
    if inputs.output_format == "png":
        image.save(out, "PNG", compress_level=1)
    else:
        image.save(out, inputs.output_format.upper(), quality=inputs.output_quality)
    return out.getvalue()
