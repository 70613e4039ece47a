"""Isolation of the tasks that make the engine fail on a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from configs.model_sections import Sim
from configs.model_settings import Model
from tests.support.log_records import records_of
from wire.inputs import ImageInputs, Shape
from wire.messages import Assignment
from worker.batch_scheduler import Member
from worker.engine import Checkpoint, DeviceLost, EngineRequest, OutOfMemory, Row, TaskError
from worker.engines.sim import SimEngine
from worker.fault_isolation import admit, save, step

INPUTS = ImageInputs("a seven", 64, 64, steps=20, guidance_scale=3.0, seed=1, scheduler="ddim")


def engine(**options: Any) -> SimEngine:
    return SimEngine(Model(engine="sim", sim=Sim(t0_s=0, t1_s=0, load_s=0, **options)))


def members(made: SimEngine, prompts: Sequence[str]) -> list[Member]:
    """Return members that have taken their first step, after which prompts have their effect."""
    rows = made.admit([EngineRequest(msgspec.structs.replace(INPUTS, prompt=prompt)) for prompt in prompts])
    running = []
    for name, row in enumerate(rows):
        assert not isinstance(row, TaskError)
        running.append(Member(Assignment(str(name), 1, INPUTS), "key", Shape("64x64", 4096), row))
    step(made, running)
    return running


def names(running: Sequence[Member]) -> list[int]:
    return [int(member.assignment.task) for member in running]


@pytest.mark.parametrize("failing", [{0}, {6}, {2, 3}, {0, 1, 2, 3, 4, 5, 6}, set()])
def test_only_failing_tasks_fail_and_others_take_one_step(failing: set[int]) -> None:
    made = engine()
    running = members(made, ["sim:fail" if n in failing else "fine" for n in range(7)])
    outcome = step(made, running)
    assert {int(member.assignment.task): error.message for member, error in outcome.failed} == dict.fromkeys(
        failing, "step failed: a failure on demand"
    )
    assert names(outcome.advanced) == [n for n in range(7) if n not in failing]
    assert [member.row.step for member in running] == [1 if n in failing else 2 for n in range(7)]


def test_out_of_memory_evicts_newest_tasks() -> None:
    made = engine(memory_tasks=2)
    running = members(engine(), ["fine"] * 7)
    outcome = step(made, running)
    assert (names(outcome.advanced), sorted(names(outcome.evicted)), outcome.failed) == ([0, 1], [2, 3, 4, 5, 6], [])
    assert [member.row.step for member in running] == [2, 2, 1, 1, 1, 1, 1]


def test_single_task_out_of_memory_fails_with_text() -> None:
    made = engine(memory_tasks=0)
    [(_, error)] = step(made, members(engine(), ["large"])).failed
    assert (error.kind, error.message) == ("out_of_memory", "1 tasks were asked for, 0 fit")


def test_lost_device_fails_no_task() -> None:
    made = engine()
    with pytest.raises(DeviceLost):
        step(made, members(made, ["fine", "sim:device", "fine"]))


class SingleAdmission(SimEngine):
    """Admits one request at a time; fails on one prompt."""

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        if len(tasks) > 1:
            raise OutOfMemory("two are too many")
        if tasks[0].image.prompt == "poison":
            raise RuntimeError("poisonous")
        if tasks[0].image.prompt == "huge":
            raise OutOfMemory("16 GiB were needed")
        return super().admit(tasks)


def test_admission_isolates_failing_request() -> None:
    prompts = ("fine", "poison", "huge", "fine")
    rows = admit(
        SingleAdmission(Model(engine="sim")),
        [EngineRequest(msgspec.structs.replace(INPUTS, prompt=prompt)) for prompt in prompts],
    )
    fine, poison, huge, also_fine = rows
    assert not isinstance(fine, Exception)
    assert not isinstance(also_fine, Exception)
    assert isinstance(poison, TaskError)
    assert "poisonous" in poison.message
    assert isinstance(huge, OutOfMemory)


def test_unusable_checkpoint_restarts_task() -> None:
    [row] = admit(engine(), [EngineRequest(INPUTS, checkpoint=Checkpoint(7, [b"of another version"]))])
    assert not isinstance(row, TaskError | OutOfMemory)
    assert row.step == 0
    [row] = admit(engine(), [EngineRequest(INPUTS, checkpoint=Checkpoint(7, [bytes(32)]))])
    assert not isinstance(row, TaskError | OutOfMemory)
    assert row.step == 7


def test_what_was_prepared_with_an_unusable_checkpoint_is_not_used() -> None:
    admitted: list[EngineRequest] = []

    class Recording(SimEngine):
        def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
            admitted.extend(tasks)
            return super().admit(tasks)

    broken = EngineRequest(INPUTS, checkpoint=Checkpoint(7, [b"of another version"]), prepared="with it")
    [row] = admit(Recording(Model(engine="sim", sim=Sim(t0_s=0, t1_s=0, load_s=0))), [broken])
    assert not isinstance(row, TaskError | OutOfMemory)
    assert [(task.checkpoint is None, task.prepared) for task in admitted] == [(False, "with it"), (True, None)]


class Unsaved(SimEngine):
    """Its state cannot be saved: at once, or in the pool."""

    def __init__(self, *, deferred: bool) -> None:
        super().__init__(Model(engine="sim", sim=Sim(t0_s=0, t1_s=0, load_s=0)))
        self._deferred = deferred

    def save(self, row: Row) -> Callable[[], Checkpoint]:
        def fail() -> Checkpoint:
            raise RuntimeError(f"no state at step {row.step}")

        if not self._deferred:
            fail()
        return fail


@pytest.mark.parametrize("deferred", [False, True])
def test_a_state_that_cannot_be_saved_has_one_traceback_per_task(
    deferred: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made = Unsaved(deferred=deferred)
    running = members(made, ["fine"] * 2)
    for _ in range(3):
        for member in running:
            state = save(made, member)
            assert state is None or state() is None
        step(made, running)
    records = records_of(caplog, "worker.fault_isolation")
    assert [bool(record.exc_info) for record in records] == [True] * 2 + [False] * 4
    assert records[-1].getMessage() == "task 1: its state could not be saved: RuntimeError: no state at step 3"
