"""Fairness, priority, deadlines and queue limits, with real workers on the simulated engine. Every image is checked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from loadbalancer.scheduling.task import DeadlineUnreachable, QueueFull, TaskCompleted, TaskProgress
from tests.support.in_process_service import InProcessService, in_process_service, inputs


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[InProcessService]:
    async with in_process_service(tmp_path) as made:
        yield made


async def test_single_request_does_not_wait_for_flood_of_other_owner(service: InProcessService) -> None:
    await service.start("w")
    flood = service.submit([inputs(seed) for seed in range(100)], owner="flood")
    await flood.progress(3)
    before = flood.completed()
    single = service.submit([inputs(7, prompt="single")], owner="single")
    await single.check_images()
    # The batch that ran at its arrival, its own batch, and tasks that shared a batch with it.
    assert service.completed.index(single.tasks[0]) - before <= 12
    service.scheduler.cancel(flood.tasks)


async def test_waiting_owners_are_served_by_weight(service: InProcessService) -> None:
    await service.start("w")
    light = service.submit([inputs(seed, steps=10) for seed in range(40)], owner="light", weight=1.0)
    heavy = service.submit([inputs(seed, steps=10) for seed in range(40)], owner="heavy", weight=3.0)
    await service.wait_until(lambda: heavy.completed() >= 30)
    last = service.completed.index([task for task in service.completed if task in heavy.tasks][29])
    # A third of thirty, and the batch that started before the others arrived, and two running batches.
    assert len(set(service.completed[:last]) & set(light.tasks)) <= 22
    await light.check_images()
    await heavy.check_images()


async def test_urgent_request_displaces_running_task(
    service: InProcessService,
) -> None:
    await service.start("w")
    patient = service.submit([inputs(seed, steps=250) for seed in range(4)])
    await patient.progress(10)
    urgent = service.submit([inputs(9, steps=5)], priority=5)
    await urgent.check_images()
    assert service.completed[0] == urgent.tasks[0], "the urgent request does not wait for a running one"
    await patient.check_images()
    assert service.scheduler.counters["preempted"] == 1
    assert service.scheduler.counters["steps_redone"] == 0


async def test_unreachable_deadline_is_rejected_before_any_step(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, {"queue": {"deadline_slack": 1.5}}) as service:
        await service.start("w")
        await service.wait_until(lambda: service.scheduler.step_curves("m"))
        crowd = service.submit([inputs(seed, steps=1000) for seed in range(20)], timeout_s=600)
        with pytest.raises(DeadlineUnreachable, match="the request allows") as refusal:
            service.submit([inputs()], timeout_s=2.0)
        assert refusal.value.eta_s > 3.0
        assert refusal.value.retry_after_s >= 1.0
        assert service.scheduler.counters["deadline_unreachable"] == 1
        # A request of another owner does not wait for these.
        other = service.submit([inputs()], timeout_s=60.0, owner="other")
        service.scheduler.cancel(crowd.tasks)
        await other.check_images()


async def test_queue_bounded_in_seconds_accepts_after_draining(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, {"queue": {"max_work_s": 0.5}}) as service:
        await service.start("w")
        await service.wait_until(lambda: service.scheduler.step_curves("m"))
        sent = [service.submit([inputs(seed, steps=50) for seed in range(4)])]
        with pytest.raises(QueueFull, match="s of work are waiting"):
            sent.extend(service.submit([inputs(seed, steps=50)]) for seed in range(1000))
        assert 1 < len(sent) < 20
        for request in sent:
            await request.check_images()
        await service.submit([inputs()]).check_images()


async def test_task_resumes_from_submitted_checkpoint(service: InProcessService) -> None:
    await service.start("w")
    whole = service.submit([inputs(3, steps=400)])
    await whole.progress(50)
    service.processes[0].terminate()
    await service.wait_until(lambda: service.scheduler.counters["requeued"] == 1)
    state = service.scheduler.checkpoint(whole.tasks[0])
    assert state is not None
    assert state.step >= 50
    service.scheduler.cancel(whole.tasks)
    await service.start("next")
    again = service.submit([inputs(3, steps=400)], checkpoints=[state])
    await again.check_images()
    assert all(u.step >= 50 for u in again.updates if isinstance(u, TaskProgress))
    assert isinstance(again.updates[-1], TaskCompleted)
