"""A short run of `scripts/fuzz.py`: random frames for a real balancer and a real worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.fuzz_lib import fuzz_balancer, fuzz_worker
from scripts.harness.balancer import running

BURSTS = 20


@pytest.mark.parametrize("seed", [1, 2])
def test_balancer_survives_random_frames(tmp_path: Path, seed: int) -> None:
    with running(tmp_path / "data", fuzz_balancer.MODELS, {fuzz_balancer.HONEST: 1}, life=fuzz_balancer.LIFE) as server:
        fuzzer = fuzz_balancer.BalancerFuzzer(server, seed)
        for _ in range(BURSTS):
            fuzzer.burst()
        report = fuzzer.end()
    assert fuzzer.faults == []
    assert report["answered"] == BURSTS + 1
    for refused in ("malformed", "stale", "unknown_worker", "workers_refused"):
        assert report[refused] > 0, f"nothing was {refused}"


@pytest.mark.parametrize("seed", [1, 2])
def test_worker_survives_random_frames(tmp_path: Path, seed: int) -> None:
    fuzzer = fuzz_worker.WorkerFuzzer(tmp_path, seed)
    try:
        for _ in range(BURSTS):
            fuzzer.burst()
        report = fuzzer.end()
    finally:
        fuzzer.kill()
    assert fuzzer.faults == []
    assert report["answered"] == BURSTS
    assert report["malformed"] > 0
    assert {"Hello", "Started", "Failed", "Finished", "Preempted"} <= fuzzer.answers.keys(), (
        "some messages must be accepted"
    )
