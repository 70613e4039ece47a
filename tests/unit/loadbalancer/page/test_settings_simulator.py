"""The processes of the page's simulator: one at a time, bounded, and ended with their reader."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from loadbalancer.page.history import Points
from loadbalancer.page.measured_workers import measured_workers
from loadbalancer.page.settings_simulator import (
    SettingsSimulator,
    SimulationFailed,
    SimulationRunning,
)
from wire.simulation import SimulatedTraffic, SimulationProgress, SimulationRequest

REQUEST = SimulationRequest("config.yaml", "m", [], 0.0, 1.0)
TRAFFIC = '{"type": "traffic", "requests": 1, "mean_work_s": 1, "start": 0, "step_s": 10, "arrivals": [1]}'
PROGRESS = '{"type": "progress", "name": "A", "share": 0.5}'


def simulator(tmp_path: Path, program: str) -> SettingsSimulator:
    script = tmp_path / "program.py"
    script.write_text(f"import os, signal, sys, time\nsys.stdin.read()\n{program}\n")
    return SettingsSimulator([sys.executable, str(script)])


def says(*lines: str) -> str:
    return "\n".join(f"print({line!r}, flush=True)" for line in lines)


async def test_replies_come_in_order(tmp_path: Path) -> None:
    runner = simulator(tmp_path, says(TRAFFIC, PROGRESS))
    process = await runner.start(REQUEST)
    assert [type(reply) async for reply in process.replies()] == [SimulatedTraffic, SimulationProgress]
    await runner.stop()


async def test_second_simulation_waits_for_the_first(tmp_path: Path) -> None:
    runner = simulator(tmp_path, says(TRAFFIC) + "\ntime.sleep(600)")
    process = await runner.start(REQUEST)
    with pytest.raises(SimulationRunning):
        await runner.start(REQUEST)
    process.kill()
    await runner.stop()
    again = await simulator(tmp_path, says(TRAFFIC)).start(REQUEST)
    await again.wait()
    assert (await runner.start(REQUEST)) is not process
    await runner.stop()


async def test_reader_that_leaves_ends_the_process(tmp_path: Path) -> None:
    runner = simulator(tmp_path, "time.sleep(600)")
    starting = asyncio.create_task(runner.start(REQUEST))
    children: list[psutil.Process] = []
    while not children:
        children = [each for each in psutil.Process().children() if "program.py" in " ".join(each.cmdline())]
        await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await runner.stop()
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in children)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (says('{"type": "refused", "message": "Choose fewer."}'), "Choose fewer."),
        (says("no JSON"), "invalid output"),
        ("sys.stdout.write('x' * (2 << 20))", "invalid output"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "more than 120 s of CPU time"),
        ("sys.exit(1)", "ended with status 1"),
    ],
)
async def test_failures_are_explained(tmp_path: Path, program: str, message: str) -> None:
    runner = simulator(tmp_path, program)
    with pytest.raises(SimulationFailed, match=message):
        await runner.start(REQUEST)
    await runner.stop()


async def test_process_that_dies_on_the_way(tmp_path: Path) -> None:
    runner = simulator(tmp_path, says(TRAFFIC) + "\nos.kill(os.getpid(), signal.SIGKILL)")
    process = await runner.start(REQUEST)
    with pytest.raises(SimulationFailed, match="ended with status -9"):
        [reply async for reply in process.replies()]
    await runner.stop()


def test_past_is_averaged_over_the_points() -> None:
    past = Points(10, [100, 110, 120, 130], {"ready": [1, 1, None, 2], "starting": [0, 1, None, 0]})
    found = measured_workers(past, 100.0, 20.0, 3)
    assert found.workers == [1.5, 2.0, None]
    assert found.worker_hours == pytest.approx(50 / 3600)
    assert found.known_share == pytest.approx(0.5)
