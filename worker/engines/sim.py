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

from configs.settings import Model
from wire.messages import SOURCES, EngineInfo, ImageInputs
from worker.engine import BatchKey, Checkpoint, DeviceLost, OutOfMemory, Picture, Row, TaskError, Wanted

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
        self._loras = model.loras is not None
        self._refuses = model.safety_checker == "refuse"
        self._fetched = False

    def fetch(self) -> None:
        """Take as long as the configuration says."""
        time.sleep(self._sim.load_s)
        self._fetched = True

    def load(self) -> None:
        """Take as long as the configuration says."""
        if not self._fetched:
            self.fetch()
        time.sleep(self._sim.activate_s)

    def warm_up(self) -> None:
        """The clock is always warm."""

    def info(self) -> EngineInfo:
        """It does everything, to no effect but on the digest."""
        modes = tuple(SOURCES)
        return EngineInfo("simulated", "sim", modes, checkpoints=True, loras=self._loras, reproducible=True)

    def fingerprint(self) -> str:
        """Its speed is configured."""
        return f"sim {self._sim.t0_s} {self._sim.t1_s} {self._sim.memory_tasks}"

    def key(self, inputs: ImageInputs) -> BatchKey:
        """Pictures of one size with equal adapters share a step."""
        return inputs.width, inputs.height, inputs.loras

    def admit(self, tasks: Sequence[Wanted]) -> list[Row | TaskError]:
        """Rows from the start or from a checkpoint."""
        return [self._row(task) for task in tasks]

    def _row(self, wanted: Wanted) -> SimRow | TaskError:
        inputs, checkpoint = wanted.inputs, wanted.checkpoint
        if list(map(len, wanted.sources)) != _source_sizes(inputs):
            return TaskError("invalid", "the source pictures are not of the image's size")
        if checkpoint is None:
            return SimRow(inputs, _first_state(inputs, wanted.sources), 0, inputs.steps)
        if len(checkpoint.frames) != 1 or len(checkpoint.frames[0]) != 32 or checkpoint.step > inputs.steps:
            return TaskError("error", "the checkpoint is not one of this engine")
        return SimRow(inputs, bytes(checkpoint.frames[0]), checkpoint.step, inputs.steps)

    def step(self, rows: Sequence[Row]) -> None:
        """Sleep t0 + t1 * b. Prompts make it fail, hang, crash or lose its device, from their second step on."""
        sim, own = self._sim, _own(rows)
        if sim.memory_tasks is not None and len(rows) > sim.memory_tasks:
            raise OutOfMemory(f"{len(rows)} tasks were asked for, {sim.memory_tasks} fit")
        for row in own:
            if sim.crash_prompt in row.inputs.prompt and row.step >= 1:
                os._exit(70)
            if sim.stuck_prompt in row.inputs.prompt and row.step >= 1:
                _never_end()
            if sim.device_prompt in row.inputs.prompt and row.step >= 1:
                raise DeviceLost("a lost device on demand")
            if sim.fail_prompt in row.inputs.prompt and row.step >= 1:
                raise RuntimeError("a failure on demand")
        time.sleep(sim.t0_s + sim.t1_s * len(rows))
        for row in own:
            row.state = hashlib.sha256(row.state).digest()
            row.step += 1

    def synchronize(self) -> None:
        """A step is over when it returns."""

    def render(self, row: Row) -> Callable[[], Picture]:
        """A small pattern grown from the row's digest, at the size that was asked for."""
        [own] = _own([row])
        state, inputs = own.state, own.inputs
        flagged = self._sim.flag_prompt in inputs.prompt

        def make() -> Picture:
            if self._sim.nan_prompt in inputs.prompt:
                raise TaskError("error", "no picture: the digest is not finite, on demand")
            if flagged and self._refuses:
                raise TaskError("unsafe", "the safety checker objects to the picture, on demand")
            return Picture(_picture(state, inputs), flagged)

        return make

    def save(self, row: Row) -> Callable[[], Checkpoint]:
        """The digest and the step: all there is."""
        [own] = _own([row])
        saved = Checkpoint(own.step, [own.state])
        return lambda: saved

    def release(self, row: Row) -> None:
        """A row holds nothing."""
        del row

    def memory_bytes(self) -> int:
        """Memory of this process: there is no device."""
        return int(psutil.Process().memory_info().rss)


def expected_picture(inputs: ImageInputs, sources: Sequence[bytes] = ()) -> bytes:
    """What a worker must answer, computed without one: tests hold every answer to it."""
    state = _first_state(inputs, sources)
    for _ in range(inputs.steps):
        state = hashlib.sha256(state).digest()
    return _picture(state, inputs)


def _never_end() -> None:
    while True:
        time.sleep(60)


def _own(rows: Sequence[Row]) -> list[SimRow]:
    own = [row for row in rows if isinstance(row, SimRow)]
    assert len(own) == len(rows)
    return own


def _source_sizes(inputs: ImageInputs) -> list[int]:
    pixels = inputs.width * inputs.height
    return [3 * pixels, pixels][: SOURCES[inputs.mode]]


def _first_state(inputs: ImageInputs, sources: Sequence[bytes]) -> bytes:
    parts: list[object] = [inputs.prompt, inputs.negative_prompt, inputs.seed, inputs.guidance_scale, inputs.scheduler]
    if inputs.mode != "text":
        parts += [inputs.mode, inputs.strength, *(hashlib.sha256(source).hexdigest() for source in sources)]
    parts += [(lora.name, lora.scale) for lora in inputs.loras]
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
