"""Checkpoints and engine failures: the real scheduler and real worker processes of the simulated engine.

Every image is compared with what the simulated engine computes by itself, which shows a lost or repeated step.
"""

from __future__ import annotations

from pathlib import Path

from loadbalancer.scheduling.task import TaskEnded, TaskProgress
from loadbalancer.scheduling.task_state import TaskState
from tests.support.in_process_service import in_process_service, inputs
from wire.inputs import Lora


async def test_killed_worker_costs_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, batching={"checkpoint_every": 5}) as service:
        await service.start("a")
        sent = service.submit([inputs(seed, steps=300) for seed in range(3)])
        await sent.progress(40)
        service.processes[0].kill()
        await service.wait_until(lambda: service.worker("a") is None)
        at = {u.task: u.step for u in sent.updates if isinstance(u, TaskProgress)}
        received = len(sent.updates)
        await service.start("b")
        await sent.check_images()
        again = [u.step for u in sent.updates[received:] if isinstance(u, TaskProgress)]
        # The newest checkpoint may not have arrived when its worker dies; then the one before it counts.
        assert min(again) >= min(at.values()) - 2 * 5
        assert 0 <= service.scheduler.counters["steps_redone"] <= 3 * 2 * 5


async def test_worker_killed_late_costs_at_most_one_interval(
    tmp_path: Path,
) -> None:
    every, steps, late = 5, 60, 30
    async with in_process_service(tmp_path, batching={"checkpoint_every": every}, sim={"t0_s": 0.1}) as service:
        await service.start("a")
        sent = service.submit([inputs(steps=steps)])
        await sent.progress(late)
        service.processes[0].kill()
        await service.wait_until(lambda: service.worker("a") is None)
        reached = max(u.step for u in sent.updates if isinstance(u, TaskProgress))
        assert late <= reached < steps
        # Nothing is lost if the worker died at a checkpoint.
        assert (reached % every > 0) <= service.scheduler.counters["steps_redone"] <= every
        await service.start("b")
        await sent.check_images()
        await service.wait_until(lambda: (w := service.worker("b")) and w.counters.finished == 1)
        other = service.worker("b")
        assert other is not None
        # The second worker has counted the remaining steps and the repeated ones.
        assert other.counters.rows == steps - reached + service.scheduler.counters["steps_redone"]


async def test_without_checkpoints_tasks_of_killed_worker_restart(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, batching={"checkpoint_every": "never"}) as service:
        await service.start("a")
        sent = service.submit([inputs(steps=300)])
        await sent.progress(20)
        service.processes[0].kill()
        await service.wait_until(lambda: service.worker("a") is None)
        assert service.scheduler.counters["steps_redone"] >= 20
        await service.start("b")
        await sent.check_images()


async def test_out_of_memory_reduces_the_batch_and_loses_nothing(tmp_path: Path) -> None:
    # 3 tasks fit where 8 are configured. Nothing is measured at the start, so that a step runs out of memory.
    async with in_process_service(
        tmp_path, max_batch_size=8, sim={"memory_tasks": 3}, warm_up={"measure_s": 0}
    ) as service:
        await service.start("w")
        sent = service.submit([inputs(seed, steps=40) for seed in range(8)])
        await sent.check_images()
        await service.wait_until(lambda: (w := service.worker("w")) and w.counters.finished == 8)
        stats = service.worker("w")
        assert stats is not None
        assert stats.counters.out_of_memory == 1, "it was not tried again"
        assert stats.counters.max_batch == 3
        assert stats.counters.failed == 0
        # The evicted tasks kept their progress: no step is repeated.
        assert stats.counters.rows == 8 * 40
        assert stats.slots == 3


async def test_task_that_never_fits_fails_with_its_memory_need(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, sim={"memory_tasks": 0}, warm_up={"measure_s": 0}) as service:
        await service.start("w")
        for end in await service.submit([inputs(seed) for seed in range(2)]).outcomes():
            assert isinstance(end, TaskEnded)
            assert (end.state, end.kind) == (TaskState.FAILED, "out_of_memory")
            assert end.message == "1 tasks were asked for, 0 fit"


async def test_memory_is_measured_before_the_first_request(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, max_batch_size="auto", sim={"memory_tasks": 4}) as service:
        await service.start("w")
        await service.wait_until(lambda: service.scheduler.step_curves("m"))
        [curve] = service.scheduler.step_curves("m")
        assert [tasks for tasks, _ in curve.points] == [1, 2, 4]
        assert all(seconds >= 0.01 + 0.002 * tasks for tasks, seconds in curve.points)
        # The next start reads what this one has measured.
        await service.start("next")
        assert len(list((service.settings.data_dir / "cache").glob("*.json"))) == 1


async def test_image_that_is_not_finite_fails_only_its_task(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        await service.start("w")
        good, bad = service.submit([inputs(seed) for seed in range(3)]), service.submit([inputs(prompt="sim:nan")])
        [end] = await bad.outcomes()
        assert isinstance(end, TaskEnded)
        assert "not finite" in end.message
        await good.check_images()


async def test_worker_exits_when_its_device_is_lost(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, batching={"checkpoint_every": 1}) as service:
        await service.start("w0")
        good = service.submit([inputs(seed, steps=200) for seed in range(3)])
        await good.progress(20)
        bad = service.submit([inputs(prompt="sim:device")])
        for n in range(3):
            await service.wait_until(lambda process=service.processes[n]: process.poll() is not None)  # type: ignore[misc]
            assert service.processes[n].returncode == 1, "it asks for a restart"
            service.spawn(f"w{n + 1}")  # not waited for: it may lose its device as well before it is ready
        [end] = await bad.outcomes()
        assert isinstance(end, TaskEnded)
        assert "3 workers died" in end.message, "the other tasks have checkpoints and run alone"
        await good.check_images()
        # A batch was lost three times, with a checkpoint at every step.
        assert service.scheduler.counters["steps_redone"] <= 3 * 4 * 2


async def test_source_images_and_adapters_move_with_their_task(tmp_path: Path) -> None:
    loras = tmp_path / "loras"
    loras.mkdir()
    async with in_process_service(tmp_path, loras=str(loras), batching={"checkpoint_every": 2}) as service:
        await service.start("a")
        pixels, mask = bytes(range(256)) * 48, bytes([0, 255] * 2048)
        inpainted = [
            inputs(seed, steps=60, mode="inpaint", strength=0.5, loras=(Lora("ink", 0.5),)) for seed in range(2)
        ]
        sent = service.submit(inpainted, sources=[pixels, mask])
        plain = service.submit([inputs(7, steps=60)])
        await sent.progress(10)
        service.processes[0].kill()
        await service.start("b")
        await sent.check_images()
        await plain.check_images()
        [wrong] = await service.submit([inputs(mode="image")], sources=[pixels[:-1]]).outcomes()
        assert isinstance(wrong, TaskEnded)
        assert wrong.kind == "invalid"
