"""When a model is marked as unable to start, and when the mark is removed."""

from __future__ import annotations

import dataclasses

import pytest

from controller.planning.crash_backoff import EQUAL_FAILURES, after_exit, cannot_start, crash_kind, decay
from controller.types import CrashBackoff, Replica, Stage
from host.types import Exit, WorkerProcess

NOW = 1000.0
SHORT = "unet.safetensors is cut short: 1 of 2 MB"


def exit_of(reason: str, status: int | None = 4, ready_at: float | None = None, *, has_served: bool = False) -> Exit:
    process = WorkerProcess("w", "m", "cuda:0", 1, NOW - 9, ready_at=ready_at)
    return Exit(process, NOW, status, start_failure=reason, has_served=has_served)


def after(*exits: Exit) -> CrashBackoff:
    crashes = CrashBackoff()
    for each in exits:
        crashes, _ = after_exit(crashes, each)
    return crashes


def replica(stage: Stage, ready_at: float | None) -> Replica:
    return Replica(WorkerProcess("w", "m", "cuda:0", 1, NOW - 9, ready_at=ready_at), stage)


@pytest.mark.parametrize(
    ("exits", "reason"),
    [
        ([exit_of(SHORT)] * EQUAL_FAILURES, SHORT),
        ([exit_of(SHORT)] * (EQUAL_FAILURES - 1), ""),
        ([exit_of("other"), *[exit_of(SHORT)] * EQUAL_FAILURES], SHORT),
        ([*[exit_of(SHORT)] * EQUAL_FAILURES, exit_of("other")], ""),
        ([exit_of(f"needs 3 GiB, {n}.5 GiB are free") for n in range(3)], "needs 3 GiB, 2.5 GiB are free"),
        ([*[exit_of(SHORT)] * 2, exit_of("", ready_at=NOW - 1), *[exit_of(SHORT)] * 2], ""),
        ([exit_of("", status=-11, has_served=True)] * 3, ""),
        ([exit_of("", status=2, has_served=True)] * 3, "its worker ended with exit status 2 while it loaded"),
        ([exit_of("", status=-9)] * 3, "its worker was killed while it loaded: main memory was short, or"),
        ([exit_of("", status=-11)] * 3, "its worker ended by signal 11 while it loaded"),
        ([exit_of("", status=1)] * 3, "its worker ended with exit status 1 while it loaded"),
        ([exit_of("", status=None)] * 5, ""),
        ([exit_of("", status=0, has_served=True)] * 5, ""),
        ([exit_of("", status=3, has_served=True)] * 5, ""),
        ([exit_of("", status=0)] * 3, "its worker ended with exit status 0 while it loaded"),
        ([exit_of("", status=3)] * 3, "its worker ended with exit status 3 while it loaded"),
        ([exit_of("", ready_at=NOW - 1)] * 5, ""),
    ],
)
def test_equal_failures_in_a_row_mark_the_model(exits: list[Exit], reason: str) -> None:
    found = cannot_start(after(*exits), 1, [], NOW)
    assert found.startswith(reason)
    assert bool(found) is bool(reason)


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (exit_of(SHORT), "start_failed"),
        (exit_of("", status=-9), "start_failed"),
        (exit_of("", status=-9, ready_at=NOW - 1), "killed"),
        (exit_of("", status=-11, ready_at=NOW - 1), "signal"),
        (exit_of("", status=1, ready_at=NOW - 1), "exit_status"),
        (exit_of("", status=None, ready_at=NOW - 1), "unknown"),
    ],
)
def test_kinds_of_crashes(ended: Exit, kind: str) -> None:
    assert crash_kind(ended) == kind


def test_silent_balancer_delays_no_start() -> None:
    assert after(*[exit_of("", status=3, ready_at=NOW - 6)] * 5) == CrashBackoff()


@pytest.mark.parametrize("status", [None, -9, 1])
def test_failure_of_a_machine_is_no_crash(status: int | None) -> None:
    ended = dataclasses.replace(exit_of("", status=status, ready_at=NOW - 6), machine_failed=True)
    assert after(*[ended] * 5) == CrashBackoff()


def served(device: str, at: float, started_at: float = NOW - 9) -> Exit:
    return Exit(WorkerProcess("w", "m", device, 1, started_at, ready_at=started_at + 0.1), at, -11, has_served=True)


@pytest.mark.parametrize(
    ("exits", "count"),
    [
        ([served(f"box/cuda:{n}", NOW) for n in range(8)], 1),
        ([served(f"cuda:{n}", NOW + 0.1 * n) for n in range(8)], 1),
        ([served("box/cuda:0", NOW), served("other/cuda:0", NOW)], 2),
        ([served("box/cuda:0", NOW), served("box/cuda:1", NOW + 3)], 2),
        # It was started after the first crash.
        ([served("box/cuda:0", NOW), served("box/cuda:0", NOW + 1.5, NOW + 1)], 2),
        # Starts that fail are counted one by one: their reason decides.
        ([exit_of(SHORT)] * 3, 3),
    ],
)
def test_crashes_together_on_a_machine_count_once(exits: list[Exit], count: int) -> None:
    assert after(*exits).count == count


def test_mark_ends_when_a_worker_is_ready_or_none_is_wanted() -> None:
    crashes = after(*[exit_of(SHORT)] * 3)
    starting, ready = replica(Stage.STARTING, None), replica(Stage.READY, NOW + 1)
    assert cannot_start(crashes, 1, [starting], NOW + 100) == SHORT
    assert cannot_start(crashes, 1, [starting, ready], NOW) == ""
    assert cannot_start(crashes, 0, [], NOW) == SHORT, "until the next try"
    assert cannot_start(crashes, 0, [], crashes.retry_at) == "", "the next request tries again"
    healed = decay(crashes, [ready], NOW + 1)
    assert (healed.count, healed.equal_failures) == (3, 0)
    assert cannot_start(healed, 1, [], NOW + 2) == "", "also when that worker has left"
    assert decay(crashes, [replica(Stage.READY, NOW - 1)], NOW) == crashes, "it was ready before the failures"
