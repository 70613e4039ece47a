"""Time belongs to the step that took it, also where a device works behind the loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from configs.model_sections import Batching, Sim
from configs.model_settings import Model
from tests.support.scheduler import INPUTS
from wire.inputs import Shape
from wire.messages import Assignment
from worker.batch_scheduler import BatchScheduler, StepClock, StepRecord, TimedStep, WaitingTask
from worker.batch_size import BatchSizer
from worker.engine import EngineRequest, StepsAhead, UnstreamedRow
from worker.engines.sim import SimEngine, expected_image

SMALL, LARGE = Shape("512x512", 512 * 512), Shape("1024x1024", 1024 * 1024)


@dataclass
class EndlessRow(UnstreamedRow):
    step: int = 0
    steps: int = 10**9


class VirtualDevice:
    """A device and a clock. A call takes `launch_s`, then waits: for its own step, or for the one before it."""

    def __init__(self, *, behind: bool) -> None:
        self._behind = behind
        self._launch_s = 0.001
        self.now = 0.0
        self._free_at = self._before = 0.0

    def step(self, seconds: float) -> None:
        self.now += self._launch_s
        self._before, self._free_at = self._free_at, max(self._free_at, self.now) + seconds
        self.now = max(self.now, self._before if self._behind else self._free_at)


@pytest.mark.parametrize("behind", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize(
    ("costs", "shares"),
    [
        ({SMALL: 0.010, LARGE: 0.080}, {SMALL: 46, LARGE: 54}),
        (
            {Shape(str(side), side): cost for side, cost in [(512, 0.010), (768, 0.025), (1024, 0.080), (1536, 0.250)]},
            {Shape(str(side), side): 25 for side in (512, 768, 1024, 1536)},
        ),
    ],
    ids=["two sizes", "four sizes"],
)
def test_sizes_share_the_device(behind: bool, costs: dict[Shape, float], shares: dict[Shape, int]) -> None:
    sizer = BatchSizer(8, fixed=True, min_gain=0.0, max_step_s=None)
    scheduler = BatchScheduler(sizer, Batching(), SMALL)
    for shape in costs:
        task = WaitingTask(Assignment(shape.key, 1, INPUTS), EngineRequest(INPUTS), shape.key, shape, 0.0)
        scheduler.join(task, EndlessRow(), 0.0)
    device, clock, used = VirtualDevice(behind=behind), StepClock() if behind else None, Counter[Shape]()
    while device.now < 60.0:
        [member], called = scheduler.next_group(device.now), device.now
        device.step(costs[member.shape])
        used[member.shape] += costs[member.shape]  # type: ignore[assignment]
        record = StepRecord(member.key, member.shape, 1, is_whole=True)
        timed = TimedStep(record, device.now - called) if clock is None else clock.on_return(record, device.now)
        scheduler.on_step(1, device.now - called, timed, device.now)
    total = sum(used.values())
    assert {shape: 100 * each / total for shape, each in used.items()} == pytest.approx(shares, abs=5)
    learnt = {curve.shape: dict(curve.points)[1] for curve in sizer.curves(device.now)}
    assert learnt == pytest.approx(costs, abs=0.002)


def test_first_step_after_idling_is_not_measured() -> None:
    clock = StepClock()
    small, large = (StepRecord(shape.key, shape, 1, is_whole=True) for shape in (SMALL, LARGE))
    assert clock.on_return(small, 0.25) is None, "only its launch was seen"
    assert clock.on_return(large, 0.375) == TimedStep(small, 0.125)
    clock.on_idle()
    assert clock.on_return(small, 5.001) is None, "nobody has waited for the step before"


def test_simulated_device_works_behind_the_loop() -> None:
    engine = SimEngine(Model(engine="sim", sim=Sim(t0_s=0.2, t1_s=0.0, load_s=0.0, asynchronous=True)))
    assert isinstance(engine, StepsAhead)
    assert engine.steps_ahead
    [row] = engine.admit([EngineRequest(INPUTS)])
    assert not isinstance(row, Exception)
    engine.step([row])
    finished = row.finished  # type: ignore[attr-defined]
    assert not finished.is_set(), "the step has only been queued"
    engine.step([row])
    assert finished.is_set(), "the step before has been waited for"
    engine.synchronize()
    assert row.finished.is_set()  # type: ignore[attr-defined]
    engine.close()


def test_images_of_an_asynchronous_device_are_the_same() -> None:
    engine = SimEngine(Model(engine="sim", sim=Sim(t0_s=0.001, t1_s=0.0, load_s=0.0, asynchronous=True)))
    [row] = engine.admit([EngineRequest(INPUTS)])
    assert not isinstance(row, Exception)
    while row.step < row.steps:
        engine.step([row])
    assert engine.render(row)().data == expected_image(INPUTS)
    engine.close()
