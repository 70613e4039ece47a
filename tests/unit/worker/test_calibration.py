"""Measuring and preparing steps before the first request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from configs.model_settings import Model
from wire.inputs import ImageInputs
from wire.messages import EngineInfo
from worker.batch_size import BUCKETS, BatchSizer
from worker.calibration import default_shape, measure
from worker.engine import EngineRequest, OutOfMemory, StepEngine, TaskError, image_samples


class Row:
    """A task of many steps."""

    step = 0

    def __init__(self, inputs: ImageInputs) -> None:
        self.steps = inputs.steps
        self.passes = 2 if inputs.guidance_scale > 1 else 1


class Compiling:
    """An engine whose first step of each number of passes takes `first_s`, and every step `step_s` per 32 tasks."""

    def __init__(self, model: Model, first_s: float, step_s: float = 0.002) -> None:
        self._model, self._first_s, self._step_s = model, first_s, step_s
        self.compiled: list[int] = []
        self.is_sealed = False
        self.steps = 0

    def info(self) -> EngineInfo:
        return EngineInfo(modes=("text",))

    def fingerprint(self) -> str:
        return "compiling"

    def key(self, request: EngineRequest) -> tuple[int, int]:
        return request.image.width, request.image.height

    def samples(self) -> list[EngineRequest]:
        return image_samples(self._model, self.info())

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row]:
        return [Row(task.image) for task in tasks]

    def step(self, rows: Sequence[Row]) -> None:
        passes = sum(row.passes for row in rows)
        if passes not in self.compiled:
            assert not self.is_sealed
            self.compiled.append(passes)
            time.sleep(self._first_s)
        time.sleep(self._step_s * (4 + len(rows) / 8))
        self.steps += 1

    def synchronize(self) -> None:
        """Steps end before they return."""

    def release(self, row: Row) -> None:
        del row

    @property
    def prepares_steps(self) -> bool:
        return True

    def end_preparation(self) -> None:
        self.is_sealed = True


def model(measure_s: float, prepare_s: float = 60.0) -> Model:
    warm_up = {"measure_s": measure_s, "prepare_s": prepare_s}
    return Model.model_validate({"engine": "sim", "defaults": {"size": "512x512"}, "warm_up": warm_up})


def calibrated(engine: Compiling, settings: Model, cache: Path) -> int:
    """Measure the engine and return the batch limit."""
    sizer = BatchSizer(32, fixed=False, min_gain=0.05, max_step_s=None)
    measure(cast("StepEngine", cast("Any", engine)), settings, sizer, 32, cache)
    return sizer.limit(default_shape(settings), time.monotonic())


def test_time_to_compile_does_not_cut_the_measurement_short(tmp_path: Path) -> None:
    settings = model(measure_s=3.0)  # far more than the steps take, also on a busy machine
    engine = Compiling(settings, first_s=0.4, step_s=0.0005)  # to compile eight batches takes longer
    assert calibrated(engine, settings, tmp_path) == 32
    assert list(tmp_path.glob("*.json"))


def test_measurement_cut_short_is_not_remembered(tmp_path: Path) -> None:
    settings = model(measure_s=0.01)
    limit = calibrated(Compiling(settings, first_s=0.0), settings, tmp_path)
    assert limit < 32
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("measure_s", [2.0, 0.0])
def test_warm_start_prepares_every_batch(tmp_path: Path, measure_s: float) -> None:
    settings = model(measure_s=2.0)
    calibrated(Compiling(settings, first_s=0.0), settings, tmp_path)
    settings = model(measure_s=measure_s)
    engine = Compiling(settings, first_s=0.0)
    limit = calibrated(engine, settings, tmp_path)
    assert engine.is_sealed
    expected = {2 * bucket for bucket in BUCKETS if bucket <= limit} | {tasks for tasks in (1, 12) if tasks <= limit}
    assert expected <= set(engine.compiled)
    if measure_s:
        assert engine.steps == len(engine.compiled), "nothing is measured again"


def test_preparation_ends_in_time(tmp_path: Path) -> None:
    settings = model(measure_s=0.01, prepare_s=0.2)
    engine = Compiling(settings, first_s=0.15)
    calibrated(engine, settings, tmp_path)
    assert engine.is_sealed
    assert len(engine.compiled) <= 4, "no other batch was begun after its time"


class Limited(Compiling):
    """An engine with memory for steps of 12 tasks, or for 8 and an image beside them."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, first_s=0.0, step_s=0.0001)
        self.batches: list[int] = []
        self.trimmed = 0

    @property
    def prepares_steps(self) -> bool:
        return False

    def step(self, rows: Sequence[Row]) -> None:
        if len(rows) > 12:
            raise OutOfMemory("steps")
        super().step(rows)
        for row in rows:
            row.step += 1
        self.batches.append(len(rows))

    def render(self, row: Row) -> Callable[[], None]:
        del row

        def decode() -> None:
            if self.batches[-1] > 8:
                raise TaskError("out_of_memory", "the decoder")

        return decode

    def trim_memory(self) -> bool:
        self.trimmed = len(self.batches)
        return True


def test_batch_leaves_room_for_an_image(tmp_path: Path) -> None:
    settings = model(measure_s=5.0)
    engine = Limited(settings)
    sizer = BatchSizer(32, fixed=False, min_gain=0.05, max_step_s=None)
    measure(cast("StepEngine", cast("Any", engine)), settings, sizer, 32, tmp_path)
    [sample] = engine.samples()
    limit = sizer.limit(default_shape(settings), time.monotonic(), key=engine.key(sample))
    assert 4 < limit <= 8, "12 fit, but not with an image beside them"
    assert engine.batches[-1] == limit, "the peak of memory is that of the batch in use"
    assert len(engine.batches) > engine.trimmed
