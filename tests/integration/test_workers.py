"""The real scheduler with real worker processes of the simulated engine: preempted, killed, drained, cancelled.

Every image is compared with what the simulated engine computes by itself, which shows a lost or repeated step.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from loadbalancer.scheduling.task import TaskCompleted, TaskEnded, TaskProgress
from loadbalancer.scheduling.task_state import TaskState
from tests.support.in_process_service import InProcessService, in_process_service, inputs
from tests.support.scheduler import IMAGE
from wire.codec import WorkerEnvelope, decode_for_worker, encode
from wire.messages import PROTOCOL, Assign, Bye, Capacity, Finished, Hello, Reject


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[InProcessService]:
    async with in_process_service(tmp_path) as made:
        yield made


async def test_mixed_requests_share_batches_and_join_midway(service: InProcessService) -> None:
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


async def test_groups_of_two_sizes_alternate(service: InProcessService) -> None:
    await service.start("w")
    small = service.submit([inputs(seed, steps=30) for seed in range(2)])
    large = service.submit([inputs(seed, steps=30, width=128) for seed in range(2)])
    await small.check_images()
    await large.check_images()
    # Both sizes ran at the same time: neither waited for the end of the other.
    for one, other in ((small, large), (large, small)):
        first = min(u.step for u in one.updates if isinstance(u, TaskProgress))
        assert first < 30
        assert any(isinstance(u, TaskProgress) and 0 < u.step < 30 for u in other.updates)


async def test_killed_worker_is_detected_and_loses_no_task(
    service: InProcessService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="loadbalancer")
    await service.start("a", "b")
    # Each worker has more tasks than it can finish before it is killed.
    sent = service.submit([inputs(seed, steps=200) for seed in range(8)])
    await sent.progress(3)
    service.processes[0].kill()
    await service.wait_until(lambda: service.worker("a") is None)
    # The kernel reports the end of the process, so `lost_after_s` plays no part.
    assert "worker a lost (its process has ended)" in caplog.text
    await sent.check_images()
    assert service.scheduler.counters["workers_lost"] == 1
    assert service.scheduler.counters["requeued"] >= 1


async def test_stopped_worker_is_lost_and_accepted_when_it_continues(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, {"workers": {"lost_after_s": 3}}) as service:
        await service.start("a", "b")
        sent = service.submit([inputs(seed, steps=60) for seed in range(8)])
        await sent.progress(3)
        os.kill(service.processes[0].pid, signal.SIGSTOP)
        await service.wait_until(lambda: service.worker("a") is None)
        os.kill(service.processes[0].pid, signal.SIGCONT)
        await service.wait_until(lambda: service.worker("a"))
        await sent.check_images()
        again = service.submit([inputs(seed) for seed in range(8)])
        await again.check_images()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
async def test_draining_worker_returns_tasks_with_their_progress(
    service: InProcessService, signum: signal.Signals
) -> None:
    await service.start("w")
    sent = service.submit([inputs(seed, steps=200) for seed in range(6)])
    await sent.progress(20)
    service.processes[0].send_signal(signum)
    await service.wait_until(lambda: service.processes[0].poll() is not None)
    assert service.processes[0].returncode == 0
    await service.wait_until(lambda: service.worker("w") is None)  # its last messages have been read then
    assert not any(isinstance(u, TaskCompleted) for u in sent.updates), "it does not finish them"
    assert service.scheduler.counters["steps_redone"] == 0
    resumed_at = len(sent.updates)
    await service.start("next")
    await sent.check_images()
    started = set(sent.tasks[:4])
    steps = [u.step for u in sent.updates[resumed_at:] if isinstance(u, TaskProgress) and u.task in started]
    assert min(steps) >= 20, "no step is repeated"


async def test_twelve_tasks_are_returned_within_two_steps(
    tmp_path: Path,
) -> None:
    count, steps = 12, 40
    async with in_process_service(tmp_path, max_batch_size=count, sim={"t0_s": 0.25}) as service:
        await service.start("w")
        sent = service.submit([inputs(seed, steps=steps) for seed in range(count)])
        await sent.progress(steps // 4)
        await service.wait_until(lambda: (w := service.worker("w")) and w.running == count)
        # Stopped for a moment, so that the balancer has all of its progress when it is drained.
        service.processes[0].send_signal(signal.SIGSTOP)
        await service.wait_until(lambda: (w := service.worker("w")) and w.state == "silent")
        at = {update.task: update.step for update in sent.updates if isinstance(update, TaskProgress)}
        for signum in (signal.SIGUSR1, signal.SIGCONT):  # without the grace time of SIGTERM
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
        # Steps of the first worker after its last report: at most the one that was running.
        after = count * steps - other.counters.rows - sum(at.values())
        assert 0 <= after < 2 * count


async def test_cancelled_task_frees_its_slot_within_a_step(service: InProcessService) -> None:
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
    assert not any(isinstance(u, TaskEnded) for u in endless.updates), "its listener is gone"


async def test_expired_task_frees_its_slot(service: InProcessService) -> None:
    await service.start("w")
    sent = service.submit([inputs(steps=100_000)], timeout_s=0.5)
    [end] = await sent.outcomes()
    assert isinstance(end, TaskEnded)
    assert end.state is TaskState.EXPIRED
    await service.wait_until(lambda: (w := service.worker("w")) and w.running + w.assigned == 0)


async def test_failing_task_leaves_its_batch_unaffected(service: InProcessService) -> None:
    await service.start("w")
    good = service.submit([inputs(seed, steps=40) for seed in range(3)])
    bad = service.submit([inputs(prompt="sim:fail")])
    [end] = await bad.outcomes()
    assert isinstance(end, TaskEnded)
    assert (end.state, end.message) == (TaskState.FAILED, "step failed: a failure on demand")
    await good.check_images()


async def test_task_fails_after_three_crashes_and_others_complete(
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


async def test_previews_come_in_order_before_the_image(service: InProcessService) -> None:
    await service.start("w")
    sent = service.submit([inputs(steps=20, previews=3)])
    await sent.check_images()
    previews = [u for u in sent.updates if isinstance(u, TaskProgress) and u.preview is not None]
    assert [u.step for u in previews] == [5, 10, 15]
    assert len({bytes(u.preview or b"") for u in previews}) == 3


async def test_worker_reconnects_to_restarted_balancer(service: InProcessService) -> None:
    await service.start("w")
    running = service.submit([inputs(seed, steps=100_000) for seed in range(4)], timeout_s=600)
    await running.progress(2)
    await service.scheduler.stop()
    # The worker's messages of this time arrive together. Nothing shows them before, and any number of them is right.
    await asyncio.sleep(1.0)
    service.scheduler = SchedulerService(service.settings, worker_address(service.settings.data_dir))
    await service.scheduler.start()
    after = service.submit([inputs(seed) for seed in range(8)])
    await after.check_images()
    # The tasks of the old balancer have no listener any more.
    await service.wait_until(
        lambda: (w := service.worker("w")) and w.running + w.assigned == 0 and w.counters.steps > 0
    )
    assert [service.scheduler.counters[event] for event in ("requeued", "steps_redone")] == [0, 0]


async def test_worker_without_balancer_exits(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, {"workers": {"orphan_after_s": 4}}) as service:
        worker = service.spawn("w")
        # It has left already if a busy machine let this process, its balancer, wait for so long.
        await service.wait_until(lambda: service.worker("w") or worker.poll() is not None)
        await service.scheduler.stop()
        await service.wait_until(lambda: worker.poll() is not None)
        assert worker.returncode == 3
        service.scheduler = SchedulerService(service.settings, worker_address(service.settings.data_dir))
        await service.scheduler.start()


async def test_malformed_messages_are_counted_and_dropped(service: InProcessService) -> None:
    await service.start("w")
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.connect(worker_address(service.settings.data_dir))
        for noise in ([b""], [b"\x80\x04\x95"], [b"\x91\x81\xa4type\xa4Pull"], [b"x" * 100_000, b"y"]):
            peer.send_multipart(noise)
        await service.wait_until(lambda: service.scheduler.counters["malformed"] == 4)
        await service.submit([inputs()]).check_images()
    assert [w.worker for w in service.scheduler.snapshot().workers] == ["w"]


async def test_texts_of_workers_are_escaped_in_the_log(
    service: InProcessService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="loadbalancer.scheduler_service")
    forged = "w\n\x1b[31mERROR all is lost"
    with zmq.Context() as context, contextlib.ExitStack() as stack:
        for name in (forged, "w"):
            peer = stack.enter_context(context.socket(zmq.DEALER))
            peer.setsockopt(zmq.IDENTITY, name.encode())
            peer.connect(worker_address(service.settings.data_dir))
            peer.send_multipart(encode([WorkerEnvelope(Hello(PROTOCOL, name, "m", "sim:0", os.getpid()))]))
            peer.send_multipart(encode([WorkerEnvelope(Bye("x\n" * 100_000))]))
        await service.wait_until(lambda: any("lost (" in message for message in caplog.messages))
        await service.wait_until(
            lambda: any(r"w\n\x1b[31mERROR all is lost rej" in message for message in caplog.messages)
        )
    assert all(message.isprintable() and len(message) < 10_000 for message in caplog.messages)
    assert service.scheduler.snapshot().workers == []


async def test_images_of_a_faulty_worker_are_made_by_another(service: InProcessService) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as faulty:
        faulty.setsockopt(zmq.ROUTING_ID, b"faulty")
        faulty.connect(worker_address(service.settings.data_dir))
        hello = Hello(PROTOCOL, "faulty", "m", "sim:0", os.getpid())
        faulty.send_multipart(encode([WorkerEnvelope(hello), WorkerEnvelope(Capacity(1))]))
        await service.wait_until(lambda: service.worker("faulty"))
        sent = service.submit([inputs(seed) for seed in range(3)])
        rejected: list[Reject] = []
        while not rejected:
            await service.wait_until(lambda: faulty.poll(0))
            for message, _ in decode_for_worker(faulty.recv_multipart()):
                match message:
                    case Assign(tasks):
                        page = [WorkerEnvelope(Finished(task.task, task.attempt, IMAGE), [b"<html>"]) for task in tasks]
                        faulty.send_multipart(encode(page))
                    case Reject():
                        rejected.append(message)
        assert rejected == [Reject("2 invalid results in a row", fatal=True)]
        await service.start("w")
        await sent.check_images()
    assert service.scheduler.counters["invalid_results"] == 2
    assert service.scheduler.counters["workers_faulty"] == 1


async def test_batches_of_one_step_tasks_are_full(tmp_path: Path) -> None:
    """Tasks that wait are on the worker when its step ends, so that its batches do not start incomplete."""
    sim = {"t0_s": 0.02, "t1_s": 0.002}
    async with in_process_service(tmp_path, max_batch_size=12, sim=sim) as service:
        await service.start("a")
        await service.submit([inputs(seed, steps=1) for seed in range(240)]).check_images()
        await service.wait_until(lambda: (worker := service.worker("a")) and worker.counters.rows == 240)
        worker = service.worker("a")
        assert worker is not None
        # All are full as a rule. A busy machine may let this process, the balancer, wait for longer than a step.
        assert worker.counters.rows / worker.counters.steps >= 10
