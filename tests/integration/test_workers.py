"""The real hub with real worker processes on the simulated accelerator: moved, killed, drained, cancelled.

Every picture is compared with what the simulated engine computes by itself, so a lost, doubled or mixed-up step shows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import zmq

from configs.paths import worker_address
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.task import TaskCompleted, TaskEnded, TaskProgress, TaskState
from tests.support.in_process_service import InProcessService, in_process_service, inputs
from wire.codec import WorkerEnvelope, encode
from wire.messages import PROTOCOL, Bye, EngineInfo, Hello


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[InProcessService]:
    async with in_process_service(tmp_path) as made:
        yield made


async def test_mixed_requests_share_batches_join_midway_and_come_back_right(service: InProcessService) -> None:
    await service.start("w")
    first = service.submit([inputs(seed, steps=30 + seed) for seed in range(3)])
    await first.progress(5)
    later = service.submit([inputs(seed, steps=5 + seed, prompt=f"a {seed}") for seed in range(10)])
    formats = service.submit([inputs(1, output_format=f) for f in ("png", "jpeg", "webp")])
    for sent in (first, later, formats):
        await sent.check_images()
    await service.wait_until(lambda: (w := service.worker("w")) and w.counters.finished == 16)
    stats = service.worker("w")
    assert stats is not None
    assert stats.counters.max_batch == 4
    assert stats.counters.joined_midway >= 1
    assert stats.counters.rows == sum(i.steps for s in (first, later, formats) for i in s.inputs)
    assert stats.running == stats.assigned == 0


async def test_two_sizes_take_turns(service: InProcessService) -> None:
    await service.start("w")
    small = service.submit([inputs(seed, steps=30) for seed in range(2)])
    large = service.submit([inputs(seed, steps=30, width=128) for seed in range(2)])
    await small.check_images()
    await large.check_images()
    # Both shapes were under way together: neither waited for the other's end.
    for one, other in ((small, large), (large, small)):
        began = min(u.step for u in one.updates if isinstance(u, TaskProgress))
        assert began < 30
        assert any(isinstance(u, TaskProgress) and 0 < u.step < 30 for u in other.updates)


async def test_sigkill_loses_no_task_and_is_noticed(
    service: InProcessService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="loadbalancer")
    await service.start("a", "b")
    sent = service.submit([inputs(seed, steps=40) for seed in range(8)])
    await sent.progress(3)
    service.processes[0].kill()
    await service.wait_until(lambda: service.worker("a") is None)
    # The kernel reports the end of the process, so `lost_after_s` plays no part.
    assert "worker a lost (its process has ended)" in caplog.text
    await sent.check_images()
    assert service.scheduler.counters["workers_lost"] == 1
    assert service.scheduler.counters["requeued"] >= 1


async def test_a_stopped_worker_is_lost_by_its_silence_and_welcome_when_it_wakes(service: InProcessService) -> None:
    await service.start("a", "b")
    sent = service.submit([inputs(seed, steps=60) for seed in range(8)])
    await sent.progress(3)
    os.kill(service.processes[0].pid, signal.SIGSTOP)
    await service.wait_until(lambda: service.worker("a") is None, timeout_s=60.0)
    os.kill(service.processes[0].pid, signal.SIGCONT)
    await service.wait_until(lambda: service.worker("a"), timeout_s=60.0)
    await sent.check_images()
    again = service.submit([inputs(seed) for seed in range(8)])
    await again.check_images()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
async def test_a_draining_worker_hands_its_tasks_back_and_another_goes_on_from_there(
    service: InProcessService, told: signal.Signals
) -> None:
    await service.start("w")
    sent = service.submit([inputs(seed, steps=100) for seed in range(6)])
    await sent.progress(20)
    service.processes[0].send_signal(told)
    await service.wait_until(lambda: service.processes[0].poll() is not None)
    assert service.processes[0].returncode == 0
    await service.wait_until(lambda: service.worker("w") is None)  # its last messages have been read then
    assert not any(isinstance(u, TaskCompleted) for u in sent.updates), "it did not stay to finish"
    assert service.scheduler.counters["steps_redone"] == 0
    resumed_at = len(sent.updates)
    await service.start("next")
    await sent.check_images()
    begun = set(sent.tasks[:4])
    steps = [u.step for u in sent.updates[resumed_at:] if isinstance(u, TaskProgress) and u.task in begun]
    assert min(steps) >= 20, "no step was done again"


async def test_twelve_images_are_handed_back_in_under_two_steps_and_come_out_as_if_nothing_had_been(
    tmp_path: Path,
) -> None:
    count, steps = 12, 40
    async with in_process_service(tmp_path, max_batch_size=count, sim={"t0_s": 0.25}) as service:
        await service.start("w")
        sent = service.submit([inputs(seed, steps=steps) for seed in range(count)])
        await sent.progress(steps // 4)
        await service.wait_until(lambda: (w := service.worker("w")) and w.running == count)
        # Stopped for a moment, so that the balancer knows how far it is when it is told to go.
        service.processes[0].send_signal(signal.SIGSTOP)
        heard = -1
        while heard != (heard := len(sent.updates)):
            await asyncio.sleep(0.3)
        at = {update.task: update.step for update in sent.updates if isinstance(update, TaskProgress)}
        for signum in (signal.SIGTERM, signal.SIGCONT):
            service.processes[0].send_signal(signum)
        await service.wait_until(lambda: service.processes[0].poll() is not None)
        assert service.processes[0].returncode == 0
        await service.wait_until(lambda: service.scheduler.counters["requeued"] == count)
        assert service.scheduler.counters["steps_redone"] == 0
        await service.start("next")
        await sent.check_images()
        await service.wait_until(lambda: (w := service.worker("next")) and w.counters.finished == count)
        other = service.worker("next")
        assert other is not None
        # What the next one did not have to do, the first one had done: no more than the step that it was in.
        after = count * steps - other.counters.rows - sum(at.values())
        assert 0 <= after < 2 * count


async def test_cancelling_frees_the_slot_within_a_step(service: InProcessService) -> None:
    await service.start("w")
    endless = service.submit([inputs(seed, steps=100_000) for seed in range(4)], timeout_s=600)
    await endless.progress(2)
    waiting = service.submit([inputs(9)])
    estimate = service.scheduler.estimate(waiting.tasks[0])
    assert estimate is not None
    assert (estimate.state, estimate.position) == (TaskState.QUEUED, 0)
    service.scheduler.cancel(endless.tasks)
    await waiting.check_images()
    await service.wait_until(lambda: (w := service.worker("w")) and w.running + w.assigned == 0)
    assert not any(isinstance(u, TaskEnded) for u in endless.updates), "nobody listens any more"


async def test_a_request_that_takes_too_long_expires_and_frees_its_slot(service: InProcessService) -> None:
    await service.start("w")
    sent = service.submit([inputs(steps=100_000)], timeout_s=0.5)
    [end] = await sent.outcomes()
    assert isinstance(end, TaskEnded)
    assert end.state is TaskState.EXPIRED
    await service.wait_until(lambda: (w := service.worker("w")) and w.running + w.assigned == 0)


async def test_one_failing_request_does_not_touch_its_batch(service: InProcessService) -> None:
    await service.start("w")
    good = service.submit([inputs(seed, steps=40) for seed in range(3)])
    bad = service.submit([inputs(prompt="sim:fail")])
    [end] = await bad.outcomes()
    assert isinstance(end, TaskEnded)
    assert (end.state, end.message) == (TaskState.FAILED, "step failed: a failure on demand")
    await good.check_images()


async def test_a_poisonous_request_is_failed_after_three_workers_and_its_neighbours_live(
    service: InProcessService,
) -> None:
    await service.start("w0")
    good = service.submit([inputs(seed, steps=40) for seed in range(3)])
    bad = service.submit([inputs(prompt="sim:crash")])
    for n in range(3):
        await service.wait_until(lambda process=service.processes[n]: process.poll() is not None)  # type: ignore[misc]
        assert service.processes[n].returncode == 70
        await service.start(f"w{n + 1}")
    [end] = await bad.outcomes()
    assert isinstance(end, TaskEnded)
    assert "3 workers died" in end.message
    await good.check_images()


async def test_previews_come_in_order_before_the_picture(service: InProcessService) -> None:
    await service.start("w")
    sent = service.submit([inputs(steps=20, partial_images=3)])
    await sent.check_images()
    previews = [u for u in sent.updates if isinstance(u, TaskProgress) and u.preview is not None]
    assert [u.step for u in previews] == [5, 10, 15]
    assert len({bytes(u.preview or b"") for u in previews}) == 3


async def test_a_restarted_balancer_is_found_again(service: InProcessService) -> None:
    await service.start("w")
    running = service.submit([inputs(seed, steps=100_000) for seed in range(4)], timeout_s=600)
    await running.progress(2)
    await service.scheduler.stop()
    await asyncio.sleep(1.0)  # what the worker says meanwhile arrives all at once
    service.scheduler = SchedulerService(service.settings, worker_address(service.settings.data_dir))
    await service.scheduler.start()
    after = service.submit([inputs(seed) for seed in range(8)])
    await after.check_images()
    # What it ran for the old balancer, nobody waits for any more.
    await service.wait_until(
        lambda: (w := service.worker("w")) and w.running + w.assigned == 0 and w.counters.steps > 0
    )
    assert [service.scheduler.counters[event] for event in ("requeued", "steps_redone")] == [0, 0]


async def test_a_worker_without_a_balancer_leaves(service: InProcessService) -> None:
    await service.start("w")
    await service.scheduler.stop()
    await service.wait_until(lambda: service.processes[0].poll() is not None, timeout_s=60.0)
    assert service.processes[0].returncode == 3
    service.scheduler = SchedulerService(service.settings, worker_address(service.settings.data_dir))
    await service.scheduler.start()


async def test_noise_on_the_socket_is_counted_and_dropped(service: InProcessService) -> None:
    await service.start("w")
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.connect(worker_address(service.settings.data_dir))
        for noise in ([b""], [b"\x80\x04\x95"], [b"\x91\x81\xa4type\xa4Pull"], [b"x" * 100_000, b"y"]):
            stranger.send_multipart(noise)
        await service.wait_until(lambda: service.scheduler.counters["malformed"] == 4)
        await service.submit([inputs()]).check_images()
    assert [w.worker for w in service.scheduler.snapshot().workers] == ["w"]


async def test_what_a_worker_calls_itself_makes_no_lines_of_its_own_in_the_log(
    service: InProcessService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="loadbalancer.scheduler_service")
    name = "w\n\x1b[31mERROR all is lost"
    hello = Hello(PROTOCOL, name, "m", "sim:0", os.getpid(), [], EngineInfo())
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.IDENTITY, name.encode())
        stranger.connect(worker_address(service.settings.data_dir))
        stranger.send_multipart(encode([WorkerEnvelope(hello)]))
        stranger.send_multipart(encode([WorkerEnvelope(Bye("x\n" * 100_000))]))
        await service.wait_until(lambda: any("lost (" in message for message in caplog.messages))
    assert all(message.isprintable() and len(message) < 10_000 for message in caplog.messages)
    assert any(r"w\n\x1b[31mERROR all is lost ready" in message for message in caplog.messages)
