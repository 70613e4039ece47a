"""Failures of machines: silence, restarts, and crashes on several of their devices."""

from __future__ import annotations

import pytest

from controller.planning.machine_health import MachineHealth
from controller.planning.machines import Machine
from controller.types import Device, Replica, Stage
from host.types import Exit, WorkerProcess

NOW = 10_000.0


def machine(name: str = "box", *, silent: bool = False, refused: str = "", at: float = NOW) -> Machine:
    return Machine(name, [Device(f"{name}/cuda:0")], frozenset(), at, silent=silent, refused_reason=refused)


def ended(device: str = "box/cuda:0", started_at: float = NOW - 500, at: float = NOW) -> Exit:
    return Exit(WorkerProcess("w", "m", device, 1, started_at, ready_at=started_at + 1), at, None)


def silences(count: int, every_s: float) -> tuple[MachineHealth, float]:
    """Let the machine fall silent for 10 s so many times; return the time of the last return."""
    health, now = MachineHealth(), NOW
    for _ in range(count):
        health.update([machine(silent=True)], now)
        now += 10
        health.update([machine()], now)
        now += every_s
    return health, now - every_s


def test_machine_that_is_silent_or_refused_is_not_used() -> None:
    health = MachineHealth()
    health.update(
        [machine("a", silent=True, at=NOW - 42), machine("b", refused="version 2 differs"), machine("c")], NOW
    )
    assert health.faults(NOW) == {"a": "a has sent nothing for 42 s", "b": "version 2 differs"}
    assert [each.name for each in health.reported] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("count", "every_s", "waits_s"),
    [(1, 60, 0), (2, 60, 0), (3, 60, 60), (4, 60, 120), (9, 60, 1800), (3, 4000, 0)],
)
def test_machine_that_falls_silent_often_waits(count: int, every_s: float, waits_s: float) -> None:
    health, now = silences(count, every_s)
    assert bool(health.faults(now)) is (waits_s > 0)
    if waits_s:
        assert f"silent {count} times in a row; used in {waits_s} s" in health.faults(now)["box"]
        assert health.faults(now + waits_s - 1)
    assert not health.faults(now + waits_s)


def test_worker_of_a_silent_machine_did_not_crash() -> None:
    health = MachineHealth()
    health.update([machine()], NOW)
    assert not health.ended_with_machine(ended())
    health.update([machine(silent=True)], NOW)
    assert health.ended_with_machine(ended())
    assert not health.ended_with_machine(ended("cuda:0"))
    assert not health.ended_with_machine(ended("other/cuda:0"))
    health.update([machine()], NOW + 30)
    assert health.ended_with_machine(ended(at=NOW + 31)), "its end is known when the machine is back"
    assert not health.ended_with_machine(ended(started_at=NOW + 30, at=NOW + 31)), "it started after the silence"
    assert not health.ended_with_machine(ended(at=NOW + 500)), "that is long after the silence"


CRASHES = [("box/cuda:0", "m"), ("box/cuda:1", "m"), ("box/cuda:1", "m")]


@pytest.mark.parametrize(
    ("crashes", "serving", "quarantined"),
    [
        (CRASHES, [("other/cuda:0", "m")], True),
        (CRASHES, [("cuda:0", "m")], True),
        # The model serves nowhere else: it may be the cause.
        (CRASHES, [], False),
        (CRASHES, [("box/cuda:2", "m")], False),
        # It crashes on another machine, too.
        ([*CRASHES, ("cuda:0", "m")], [("other/cuda:0", "m")], False),
        # One bad device is no bad machine.
        ([("box/cuda:0", "m")] * 5, [("other/cuda:0", "m")], False),
    ],
)
def test_crashes_on_several_devices_are_a_fault_of_the_machine(
    crashes: list[tuple[str, str]], serving: list[tuple[str, str]], quarantined: bool
) -> None:
    health = MachineHealth()
    health.update([machine()], NOW)
    for number, (device, model) in enumerate(crashes):
        health.on_crash(WorkerProcess(f"w{number}", model, device, 1, 0.0), NOW)
    ready = [Replica(WorkerProcess("s", model, device, 1, 0.0, ready_at=1.0), Stage.READY) for device, model in serving]
    health.observe(ready, NOW)
    assert bool(health.faults(NOW).get("box")) is quarantined
