"""Three models on two simulated GPUs under a shifting load: a real controller, balancer and workers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from scripts.harness.balancer import sim
from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S
from wire.scaling import ControllerReport

#: Idle workers stay, so a worker only stops to free memory for another.
SCALING = {
    "policy": "queue_depth",
    "interval_s": 0.5,
    "max_workers": 2,
    "cold_start_s": 1,
    "scale_up_at": 3,
    "scale_down_at": 0,
    "scale_to_zero": {"idle_s": 36_000},
}


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    """Two GPUs of 20 GiB. `a` always has a worker; `b` and `c` fit on one GPU neither with each other nor with `a`."""
    large = {"gpu_memory": "14GiB", "scaling": SCALING | {"min_workers": 0}}
    slow = {"t0_s": 0.02, "t1_s": 0.005}
    models = {
        "a": sim(gpu_memory="8GiB", scaling=SCALING | {"min_workers": 1}, **slow),
        "b": sim(**large, **slow),
        "c": sim(**large, **slow),
    }
    made = Instance(tmp_path, {"models": models, "devices": {"simulated": [{"memory": "20GiB", "count": 2}]}})
    try:
        yield made
    finally:
        made.end()


async def ask(instance: Instance, model: str, times: int) -> None:
    """Send `times` concurrent requests; every one must be answered."""
    body = {"model": model, "prompt": "a seven", "num_inference_steps": 40}
    async with httpx.AsyncClient(timeout=PATIENCE_S, limits=httpx.Limits(max_connections=None)) as client:
        answers = await asyncio.gather(*(client.post(f"{instance.url}/predict", json=body) for _ in range(times)))
    assert [answer.status_code for answer in answers] == [200] * times


def report(instance: Instance) -> ControllerReport:
    """Wait for the controller's next report and return it."""
    [found] = instance.next_reports()
    return found


def placed(instance: Instance) -> list[str]:
    """Return the models of the ready workers."""
    return sorted(worker.model for worker in instance.workers())


async def test_shifting_load_swaps_workers_without_failed_requests(instance: Instance) -> None:
    await asyncio.to_thread(instance.until, lambda: "Muster is ready at" in instance.output(), "the welcome")
    for model in ("b", "c", "b"):
        await ask(instance, model, 12)
        await asyncio.to_thread(instance.until, lambda m=model: placed(instance) == ["a", m], f"a worker of {model}")  # type: ignore[misc]
    await asyncio.to_thread(instance.until, lambda: report(instance).swaps >= 2, "the second swap")
    assert report(instance).swaps == 2, instance.output()
    reasons = re.findall(r"draining worker (\w)-\w+: (swap: .*)", instance.output())
    assert reasons == [("b", "swap: c has work and no worker"), ("c", "swap: b has work and no worker")]
    assert "a" not in {model for model, _ in reasons}

    # `a` now has so much work that a second worker is worth more than the idle worker of `b`.
    flood = asyncio.create_task(ask(instance, "a", 80))
    await asyncio.to_thread(instance.until, lambda: placed(instance) == ["a", "a"], "a second worker of a")
    await flood
    assert re.search(r"draining worker b-\w+: swap: another worker of a saves", instance.output())

    # Without load no worker starts or stops any more.
    await asyncio.to_thread(
        instance.until, lambda: all(model.draining == 0 for model in report(instance).models), "rest"
    )
    idle_processes = {process.pid for process in instance.children()}
    await asyncio.to_thread(instance.next_reports, 5)
    assert {process.pid for process in instance.children()} == idle_processes
    expected = {"a": 2, "b": 0, "c": 0}
    await asyncio.to_thread(
        instance.until, lambda: {m.model: m.ready for m in report(instance).models} == expected, "the reported workers"
    )
    after = report(instance)
    assert after.swaps == 3
    assert {device.device: device.memory_bytes for device in after.devices} == {"sim:0": 20 << 30, "sim:1": 20 << 30}


def test_missing_gpu_memory_is_reported_with_numbers(tmp_path: Path) -> None:
    models = {name: sim(gpu_memory="14GiB", scaling={"max_workers": 2}) for name in ("a", "b")}
    instance = Instance(tmp_path, {"models": models, "devices": {"simulated": [{"memory": "20GiB"}]}})
    try:
        reason = "b: 1 more wanted, but no GPU has 14.0 GiB free: the largest free amount is 6.0 GiB on sim:0"
        instance.until(lambda: reason in instance.output(), "the reason")
        instance.until_logged("the GPU memory does not suffice for all min_workers: 1 of 1 of b must wait")
        instance.until(
            lambda: reason[3:] in {model.blocked_reason for model in report(instance).models},
            "the reason in the report",
        )
        instance.until(lambda: placed(instance) == ["a"], "the model that fits")
    finally:
        instance.end()


def test_measured_gpu_memory_is_stored_for_next_start(tmp_path: Path) -> None:
    models = {"a": sim(), "b": sim(), "c": sim()}
    config = {"models": models, "devices": {"simulated": [{"memory": "20GiB"}]}}
    instance = Instance(tmp_path, config)
    try:
        # The memory of the models is unknown: a worker is alone on the GPU until it has reported its memory.
        instance.until_workers(3)
        file = tmp_path / "cache" / "gpu_memory.json"
        instance.until(lambda: file.exists() and len(msgspec.json.decode(file.read_bytes())) == 3, "the measurement")
        sizes = msgspec.json.decode(file.read_bytes(), type=dict[str, int])
        assert all(10 << 20 < size < 20 << 30 for size in sizes.values()), sizes
    finally:
        instance.end()


def test_device_with_repeated_crashes_is_excluded(tmp_path: Path) -> None:
    models = {"m": sim(gpu_memory="14GiB", scaling={"min_workers": 2, "max_workers": 2})}
    instance = Instance(tmp_path, {"models": models, "devices": {"simulated": [{"memory": "20GiB", "count": 3}]}})
    try:
        killed: set[int] = set()

        def is_excluded() -> bool:
            for worker in instance.workers():
                if worker.device == "sim:0" and worker.pid not in killed:
                    killed.add(worker.pid)
                    os.kill(worker.pid, signal.SIGKILL)
            return "sim:0 is not used: 3 crashes in a row" in instance.output()

        instance.until(is_excluded, "the device to be excluded")
        instance.until(
            lambda: sorted(w.device for w in instance.workers()) == ["sim:1", "sim:2"], "a worker on another device"
        )

        def reasons() -> dict[str, str]:
            return {device.device: device.unhealthy_reason for device in report(instance).devices}

        instance.until(lambda: reasons()["sim:0"].startswith("3 crashes in a row; tried again in"), "the reason")
        assert (reasons()["sim:1"], reasons()["sim:2"]) == ("", "")
        assert len(killed) == 3
    finally:
        instance.end()


def test_model_larger_than_every_gpu_is_rejected_at_start(tmp_path: Path) -> None:
    config = {"models": {"a": sim(gpu_memory="30GiB")}, "devices": {"simulated": [{"memory": "20GiB"}]}}
    instance = Instance(tmp_path, config)
    try:
        assert instance.process.wait(PATIENCE_S) == 2
        assert (
            "cannot start: models.a.gpu_memory is 30.0 GiB, but the largest GPU (sim:0) has 20.0 GiB"
            in instance.output()
        )
    finally:
        instance.end()
