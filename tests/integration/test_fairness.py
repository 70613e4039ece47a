"""Who is served when, with a real hub and real workers on the simulated accelerator. Every picture is checked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from loadbalancer.scheduling.task import DeadlineUnreachable, QueueFull, TaskCompleted, TaskProgress
from tests.support.in_process_service import Rig, inputs, rig_of


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_of(tmp_path) as made:
        yield made


async def test_a_single_request_does_not_wait_behind_a_flood(rig: Rig) -> None:
    await rig.start("w")
    flood = rig.submit([inputs(seed) for seed in range(100)], owner="flood")
    await flood.progress(3)
    before = flood.completed()
    single = rig.submit([inputs(7, prompt="single")], owner="single")
    await single.pictures_are_right()
    # The batch that ran when it came, its own, and what shared a batch with it for a while.
    assert flood.completed() - before <= 12
    assert flood.completed() < 50
    rig.scheduler.cancel(flood.tasks)


async def test_owners_that_both_wait_are_served_by_their_weights(rig: Rig) -> None:
    await rig.start("w")
    light = rig.submit([inputs(seed, steps=10) for seed in range(40)], owner="light", weight=1.0)
    heavy = rig.submit([inputs(seed, steps=10) for seed in range(40)], owner="heavy", weight=3.0)
    await rig.until(lambda: heavy.completed() >= 30)
    # A third of thirty, give or take the batch that began before the others came and two that are under way.
    assert light.completed() <= 22
    await light.pictures_are_right()
    await heavy.pictures_are_right()


async def test_an_urgent_request_displaces_a_running_one_whose_picture_is_still_right(rig: Rig) -> None:
    await rig.start("w")
    patient = rig.submit([inputs(seed, steps=250) for seed in range(4)])
    await patient.progress(10)
    urgent = rig.submit([inputs(9, steps=5)], priority=5)
    await urgent.pictures_are_right()
    assert patient.completed() == 0, "it did not wait for one of them to end"
    await patient.pictures_are_right()
    assert rig.scheduler.counters["displaced"] == 1
    assert rig.scheduler.counters["steps_redone"] == 0


async def test_a_request_that_cannot_be_in_time_is_refused_before_any_work(tmp_path: Path) -> None:
    async with rig_of(tmp_path, {"queue": {"deadline_slack": 1.5}}) as rig:
        await rig.start("w")
        await rig.until(lambda: rig.scheduler.step_curves("m"))
        crowd = rig.submit([inputs(seed, steps=1000) for seed in range(20)], timeout_s=600)
        with pytest.raises(DeadlineUnreachable, match="the request allows") as refusal:
            rig.submit([inputs()], timeout_s=2.0)
        assert refusal.value.eta_s > 3.0
        assert refusal.value.retry_after_s >= 1.0
        assert rig.scheduler.counters["deadline_unreachable"] == 1
        # Those of another owner are not behind the crowd.
        other = rig.submit([inputs()], timeout_s=60.0, owner="other")
        rig.scheduler.cancel(crowd.tasks)
        await other.pictures_are_right()


async def test_the_queue_is_bounded_in_seconds_and_takes_more_when_it_has_drained(tmp_path: Path) -> None:
    async with rig_of(tmp_path, {"queue": {"max_work_s": 0.5}}) as rig:
        await rig.start("w")
        await rig.until(lambda: rig.scheduler.step_curves("m"))
        sent = [rig.submit([inputs(seed, steps=50) for seed in range(4)])]
        with pytest.raises(QueueFull, match="s of work are waiting"):
            sent.extend(rig.submit([inputs(seed, steps=50)]) for seed in range(1000))
        assert 1 < len(sent) < 20
        for one in sent:
            await one.pictures_are_right()
        await rig.submit([inputs()]).pictures_are_right()


async def test_a_task_from_an_earlier_life_goes_on_where_it_was(rig: Rig) -> None:
    await rig.start("w")
    whole = rig.submit([inputs(3, steps=200)])
    await whole.progress(50)
    rig.processes[0].terminate()
    await rig.until(lambda: rig.scheduler.counters["requeued"] == 1)
    state = rig.scheduler.checkpoint(whole.tasks[0])
    assert state is not None
    assert state.step >= 50
    rig.scheduler.cancel(whole.tasks)
    await rig.start("next")
    again = rig.submit([inputs(3, steps=200)], checkpoints=[state])
    await again.pictures_are_right()
    assert all(u.step >= 50 for u in again.updates if isinstance(u, TaskProgress))
    assert isinstance(again.updates[-1], TaskCompleted)
