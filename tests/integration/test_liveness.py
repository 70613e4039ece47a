"""New, stuck and suspended workers with a real scheduler service: running tasks move, and every image is correct."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest_asyncio

from scripts.harness.balancer import running, sim
from scripts.harness.processes import PATIENCE_S, wait_until
from tests.support.in_process_service import InProcessService, in_process_service, inputs


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[InProcessService]:
    # A step of four takes twice as long as one of two.
    sim = {"t0_s": 0.004, "t1_s": 0.008}
    async with in_process_service(tmp_path, {"workers": {"stuck_min_s": 2.0}}, sim=sim) as made:
        yield made


async def test_new_worker_resumes_running_tasks_without_lost_steps(service: InProcessService) -> None:
    await service.start("a", "b")
    # To start takes as long as it takes: the new worker is ready, but not seen before the tasks run.
    service.processes[1].send_signal(signal.SIGSTOP)
    await service.wait_until(lambda: (w := service.worker("b")) and w.state == "silent")
    sent = service.submit([inputs(seed, steps=300) for seed in range(4)])
    await sent.progress(5)
    service.processes[1].send_signal(signal.SIGCONT)
    await sent.check_images()
    assert service.scheduler.counters["rebalanced"] == 2
    assert service.scheduler.counters["steps_redone"] == 0
    await service.wait_until(lambda: (w := service.worker("b")) and w.counters.finished == 2)


async def test_tasks_of_stuck_worker_resume_on_another(service: InProcessService) -> None:
    await service.start("a")
    good = service.submit([inputs(seed, steps=60) for seed in range(3)])
    await good.progress(5)
    bad = service.submit([inputs(prompt="sim:stuck")])
    # A stuck worker still sends heartbeats.
    await service.wait_until(lambda: (w := service.worker("a")) and w.state == "stuck" and w.last_message_age_s < 2.0)
    assert service.scheduler.counters["workers_stuck"] == 1
    assert service.scheduler.counters["workers_lost"] == 0
    service.scheduler.cancel(bad.tasks)
    await service.start("b")
    await good.check_images()
    service.processes[0].kill()
    await service.wait_until(lambda: service.worker("a") is None)


async def test_suspended_worker_is_not_stuck_when_it_continues(service: InProcessService) -> None:
    await service.start("a")
    sent = service.submit([inputs(seed, steps=60) for seed in range(2)])
    await sent.progress(5)
    os.kill(service.processes[0].pid, signal.SIGSTOP)
    await service.wait_until(lambda: (w := service.worker("a")) and w.state == "silent")
    os.kill(service.processes[0].pid, signal.SIGCONT)
    await sent.check_images()
    assert service.scheduler.counters["workers_stuck"] == 0


def test_suspended_balancer_does_not_lose_workers(tmp_path: Path) -> None:
    life = {"heartbeat_s": 0.2, "lost_after_s": 10, "orphan_after_s": 60}
    models = {"m": sim(t0_s=0.02, defaults={"size": "64x64", "steps": 200})}
    with running(tmp_path, models, 2, life=life) as server, ThreadPoolExecutor() as pool:
        sent = [
            pool.submit(httpx.post, f"{server.base_url}/predict", json={"prompt": "x"}, timeout=PATIENCE_S)
            for _ in range(4)
        ]
        wait_until(lambda: sum(worker.running for worker in server.snapshot().workers) == 4, "running tasks")
        with server.stopped():  # the whole container stands still, and workers continue after the balancer
            server.balancer.send_signal(signal.SIGSTOP)
            time.sleep(12.0)  # longer than `lost_after_s`; a stopped process can be asked nothing
            server.balancer.send_signal(signal.SIGCONT)
            wait_until(lambda: "the balancer was suspended for" in server.log("loadbalancer"), "the log line")
            time.sleep(1.0)  # some ticks
        assert [answer.result().status_code for answer in sent] == [200] * 4
        assert "lost (silent" not in server.log("loadbalancer")
