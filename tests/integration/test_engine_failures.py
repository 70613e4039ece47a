"""Checkpoints, and the ways in which an engine breaks: the real hub and real worker processes on the simulated engine.

Every picture is compared with what the simulated engine computes by itself, so a lost or doubled step shows.
"""

from __future__ import annotations

from pathlib import Path

from loadbalancer.scheduling.task import TaskEnded, TaskProgress, TaskState
from tests.support.in_process_service import in_process_service, inputs
from wire.messages import Lora


async def test_a_killed_worker_costs_at_most_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, batching={"checkpoint_every": 5}) as service:
        await service.start("a")
        sent = service.submit([inputs(seed, steps=60) for seed in range(3)])
        await sent.progress(40)
        service.processes[0].kill()
        await service.wait_until(lambda: service.worker("a") is None)
        at = {u.task: u.step for u in sent.updates if isinstance(u, TaskProgress)}
        heard = len(sent.updates)
        await service.start("b")
        await sent.check_images()
        again = [u.step for u in sent.updates[heard:] if isinstance(u, TaskProgress)]
        # A checkpoint may be on its way when its worker dies, so that the one before it counts.
        assert min(again) >= min(at.values()) - 2 * 5
        assert 0 <= service.scheduler.counters["steps_redone"] <= 3 * 2 * 5


async def test_a_worker_killed_at_four_fifths_of_an_image_costs_at_most_the_steps_between_two_checkpoints(
    tmp_path: Path,
) -> None:
    every, steps = 5, 40
    async with in_process_service(tmp_path, batching={"checkpoint_every": every}, sim={"t0_s": 0.1}) as service:
        await service.start("a")
        sent = service.submit([inputs(steps=steps)])
        await sent.progress(steps * 4 // 5)
        service.processes[0].kill()
        await service.wait_until(lambda: service.worker("a") is None)
        reached = max(u.step for u in sent.updates if isinstance(u, TaskProgress))
        assert steps * 4 // 5 <= reached < steps
        # Nothing is lost if the worker died at a checkpoint.
        assert (reached % every > 0) <= service.scheduler.counters["steps_redone"] <= every
        await service.start("b")
        await sent.check_images()
        await service.wait_until(lambda: (w := service.worker("b")) and w.counters.finished == 1)
        other = service.worker("b")
        assert other is not None
        # The second worker's own count says the same: what was left to do, and what was done again.
        assert other.counters.rows == steps - reached + service.scheduler.counters["steps_redone"]


async def test_without_checkpoints_a_killed_workers_tasks_start_again(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, batching={"checkpoint_every": "never"}) as service:
        await service.start("a")
        sent = service.submit([inputs(steps=60)])
        await sent.progress(20)
        service.processes[0].kill()
        await service.wait_until(lambda: service.worker("a") is None)
        assert service.scheduler.counters["steps_redone"] >= 20
        await service.start("b")
        await sent.check_images()


async def test_out_of_memory_makes_the_batch_smaller_and_loses_nothing(tmp_path: Path) -> None:
    # 3 fit where 8 are configured: measured at the start, but a size that was not measured finds out by itself.
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
        # Each was squeezed out with its progress: no step was done twice.
        assert stats.counters.rows == 8 * 40
        assert stats.slots == 3


async def test_what_does_not_fit_even_alone_fails_and_says_what_was_needed(tmp_path: Path) -> None:
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


async def test_a_picture_that_is_none_fails_alone(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        await service.start("w")
        good, bad = service.submit([inputs(seed) for seed in range(3)]), service.submit([inputs(prompt="sim:nan")])
        [end] = await bad.outcomes()
        assert isinstance(end, TaskEnded)
        assert "not finite" in end.message
        await good.check_images()


async def test_a_worker_whose_device_is_lost_leaves_and_its_tasks_go_on_elsewhere(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, batching={"checkpoint_every": 1}) as service:
        await service.start("w0")
        good = service.submit([inputs(seed, steps=200) for seed in range(3)])
        await good.progress(20)
        bad = service.submit([inputs(prompt="sim:device")])
        for n in range(3):
            await service.wait_until(lambda process=service.processes[n]: process.poll() is not None)  # type: ignore[misc]
            assert service.processes[n].returncode == 1, "it asks for a restart"
            service.spawn(f"w{n + 1}")  # not waited for: it may meet the same fate before it is noticed
        [end] = await bad.outcomes()
        assert isinstance(end, TaskEnded)
        assert "3 workers died" in end.message, "its neighbours have their checkpoints, it has had its chances"
        await good.check_images()
        # Three times a batch was lost, and its members had been told about every step.
        assert service.scheduler.counters["steps_redone"] <= 3 * 4 * 2


async def test_source_pictures_and_adapters_travel_with_their_task(tmp_path: Path) -> None:
    loras = tmp_path / "loras"
    loras.mkdir()
    async with in_process_service(tmp_path, loras=str(loras), batching={"checkpoint_every": 2}) as service:
        await service.start("a")
        pixels, mask = bytes(range(256)) * 48, bytes([0, 255] * 2048)
        drawn = [inputs(seed, steps=60, mode="inpaint", strength=0.5, loras=(Lora("ink", 0.5),)) for seed in range(2)]
        sent = service.submit(drawn, sources=[pixels, mask])
        plain = service.submit([inputs(7, steps=60)])
        await sent.progress(10)
        service.processes[0].kill()
        await service.start("b")
        await sent.check_images()
        await plain.check_images()
        [wrong] = await service.submit([inputs(mode="image")], sources=[pixels[:-1]]).outcomes()
        assert isinstance(wrong, TaskEnded)
        assert wrong.kind == "invalid"
