"""What becomes of tasks when the engine breaks on them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from configs.settings import Model, Sim
from wire.messages import Assignment, ImageInputs
from worker.batch import Member
from worker.engine import Checkpoint, DeviceLost, OutOfMemory, Row, TaskError, Wanted
from worker.engines.sim import SimEngine
from worker.fault_isolation import admit, step

INPUTS = ImageInputs("a seven", 64, 64, steps=20, guidance_scale=3.0, seed=1, scheduler="ddim")


def engine(**options: Any) -> SimEngine:
    return SimEngine(Model(engine="sim", sim=Sim(t0_s=0, t1_s=0, load_s=0, **options)))


def members(made: SimEngine, prompts: Sequence[str]) -> list[Member[Row]]:
    """Each has taken its first step, from where on prompts have their effect."""
    rows = made.admit([Wanted(msgspec.structs.replace(INPUTS, prompt=prompt)) for prompt in prompts])
    running = []
    for name, row in enumerate(rows):
        assert not isinstance(row, TaskError)
        running.append(Member(Assignment(str(name), 1, INPUTS), "key", row))
    step(made, running)
    return running


def names(running: Sequence[Member[Row]]) -> list[int]:
    return [int(member.assignment.task) for member in running]


@pytest.mark.parametrize("guilty", [{0}, {6}, {2, 3}, {0, 1, 2, 3, 4, 5, 6}, set()])
def test_only_the_guilty_fail_and_the_others_take_exactly_one_step(guilty: set[int]) -> None:
    made = engine()
    running = members(made, ["sim:fail" if n in guilty else "fine" for n in range(7)])
    outcome = step(made, running)
    assert {int(member.assignment.task): error.message for member, error in outcome.failed} == dict.fromkeys(
        guilty, "step failed: a failure on demand"
    )
    assert names(outcome.moved) == [n for n in range(7) if n not in guilty]
    assert [member.row.step for member in running] == [1 if n in guilty else 2 for n in range(7)]


def test_out_of_memory_squeezes_out_the_newest() -> None:
    made = engine(memory_tasks=2)
    running = members(engine(), ["fine"] * 7)
    outcome = step(made, running)
    assert (names(outcome.moved), sorted(names(outcome.squeezed_out)), outcome.failed) == ([0, 1], [2, 3, 4, 5, 6], [])
    assert [member.row.step for member in running] == [2, 2, 1, 1, 1, 1, 1]


def test_a_lone_task_that_does_not_fit_fails_and_says_what_was_needed() -> None:
    made = engine(memory_tasks=0)
    [(_, error)] = step(made, members(engine(), ["large"])).failed
    assert (error.kind, error.message) == ("out_of_memory", "1 tasks were asked for, 0 fit")


def test_a_lost_device_is_nobodys_failure() -> None:
    made = engine()
    with pytest.raises(DeviceLost):
        step(made, members(made, ["fine", "sim:device", "fine"]))


class Crowded(SimEngine):
    """Cannot admit two at once; breaks on one prompt."""

    def admit(self, tasks: Sequence[Wanted]) -> list[Row | TaskError]:
        if len(tasks) > 1:
            raise OutOfMemory("two are too many")
        if tasks[0].inputs.prompt == "poison":
            raise RuntimeError("poisonous")
        if tasks[0].inputs.prompt == "huge":
            raise OutOfMemory("16 GiB were needed")
        return super().admit(tasks)


def test_admission_finds_the_guilty_one_too() -> None:
    prompts = ("fine", "poison", "huge", "fine")
    rows = admit(Crowded(Model()), [Wanted(msgspec.structs.replace(INPUTS, prompt=prompt)) for prompt in prompts])
    fine, poison, huge, also_fine = rows
    assert not isinstance(fine, Exception)
    assert not isinstance(also_fine, Exception)
    assert isinstance(poison, TaskError)
    assert "poisonous" in poison.message
    assert isinstance(huge, OutOfMemory)


def test_a_checkpoint_that_cannot_be_used_means_the_start_not_the_end() -> None:
    [row] = admit(engine(), [Wanted(INPUTS, checkpoint=Checkpoint(7, [b"of another version"]))])
    assert not isinstance(row, TaskError | OutOfMemory)
    assert row.step == 0
    [row] = admit(engine(), [Wanted(INPUTS, checkpoint=Checkpoint(7, [bytes(32)]))])
    assert not isinstance(row, TaskError | OutOfMemory)
    assert row.step == 7
