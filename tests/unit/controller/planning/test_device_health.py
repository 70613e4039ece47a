"""Quarantine of devices: repeated crashes on one device, unless the model is the cause."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.planning.device_health import DeviceHealth
from controller.types import Replica, Stage
from host.types import WorkerProcess

NOW = 10_000.0


def ready(device: str, model: str, since: float = 0.0) -> Replica:
    return Replica(WorkerProcess(f"{model}-{device}", model, device, 1, since, None, since), Stage.READY)


def failures(*crashes: tuple[str, str, float]) -> DeviceHealth:
    """Record crashes, given as device, model and age in seconds."""
    found = DeviceHealth()
    for device, model, ago in crashes:
        found.record(device, model, NOW - ago)
    return found


def update(health: DeviceHealth, replicas: list[Replica], now: float) -> dict[str, str]:
    health.update(replicas, now)
    return health.quarantined(now)


ELSEWHERE = [ready("cuda:1", "a")]
ROW = [("cuda:0", "a", 30.0), ("cuda:0", "a", 20.0), ("cuda:0", "a", 10.0)]


@pytest.mark.parametrize(
    ("crashes", "replicas", "quarantined"),
    [
        (ROW, ELSEWHERE, {"cuda:0"}),
        (ROW[:2], ELSEWHERE, set()),
        # No other worker shows that the model is healthy.
        (ROW, [], set()),
        (ROW, [ready("cuda:1", "b")], set()),
        # It crashes on every device: the serving worker may be older than the cause.
        ([*ROW, ("cuda:2", "a", 5.0)], ELSEWHERE, set()),
        # Another model crashed on this device only.
        ([*ROW, ("cuda:0", "b", 5.0), ("cuda:2", "a", 5.0)], [*ELSEWHERE, ready("cuda:1", "b")], {"cuda:0"}),
        # An old crash does not count.
        ([("cuda:0", "a", 3000.0), *ROW[1:]], ELSEWHERE, set()),
        # One that was ready before the crashes shows nothing.
        (ROW, [*ELSEWHERE, ready("cuda:0", "a", NOW - 100)], {"cuda:0"}),
        # A worker that has served since the last crash shows that the device is healthy.
        (
            [(device, model, ago + 100) for device, model, ago in ROW],
            [*ELSEWHERE, ready("cuda:0", "a", NOW - 61)],
            set(),
        ),
        (
            [(device, model, ago + 100) for device, model, ago in ROW],
            [*ELSEWHERE, ready("cuda:0", "a", NOW - 59)],
            {"cuda:0"},
        ),
    ],
)
def test_repeated_crashes_quarantine_a_device(
    crashes: list[tuple[str, str, float]], replicas: list[Replica], quarantined: set[str]
) -> None:
    assert set(update(failures(*crashes), replicas, NOW)) == quarantined


def test_quarantine_doubles_after_each_further_crash() -> None:
    record = failures(*ROW)
    rests, now = [], NOW
    for _ in range(6):
        assert update(record, ELSEWHERE, now)
        began = now
        while update(record, [], now):  # until the quarantine ends
            now += 10.0
        rests.append(now - began)
        assert update(record, ELSEWHERE, now) == {}, "it may be tried"
        record.record("cuda:0", "a", now)
    assert rests == [300, 600, 1200, 2400, 3600, 3600]


def test_device_that_crashes_for_months_stays_in_quarantine() -> None:
    record = failures(*ROW)
    record.failures["cuda:0"] = replace(record.failures["cuda:0"], quarantines=10**6)
    assert update(record, ELSEWHERE, NOW) == {"cuda:0": "3 crashes in a row; tried again in 3600 s"}


def test_quarantine_ends_if_model_crashes_on_other_device() -> None:
    record = failures(*ROW)
    assert update(record, ELSEWHERE, NOW) == {"cuda:0": "3 crashes in a row; tried again in 300 s"}
    record.record("cuda:2", "a", NOW + 1)
    assert update(record, ELSEWHERE, NOW + 2) == {}


def test_healthy_service_resets_the_crash_count() -> None:
    record = failures(*ROW)
    later = NOW + 301
    assert update(record, ELSEWHERE, NOW)
    assert update(record, [*ELSEWHERE, ready("cuda:0", "a", later)], later + 60) == {}
    record.record("cuda:0", "a", later + 70)
    assert update(record, ELSEWHERE, later + 70) == {}
