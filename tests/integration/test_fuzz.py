"""Frames at random for a real balancer and a real worker: a short part of what `scripts/fuzz.py` does at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.fuzz_lib import fuzz_balancer, fuzz_worker
from scripts.harness.balancer import running

BURSTS = 20


@pytest.mark.parametrize("seed", [1, 2])
def test_a_balancer_stands_a_siege(tmp_path: Path, seed: int) -> None:
    with running(tmp_path / "data", fuzz_balancer.MODELS, {fuzz_balancer.HONEST: 1}, life=fuzz_balancer.LIFE) as server:
        siege = fuzz_balancer.Siege(server, seed)
        for _ in range(BURSTS):
            siege.burst()
        told = siege.end()
    assert siege.faults == []
    assert told["answered"] == BURSTS + 1
    for refused in ("malformed", "stale", "unknown_worker", "workers_refused"):
        assert told[refused] > 0, f"nothing was {refused}: the test has lost its point"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_worker_stands_a_mad_balancer(tmp_path: Path, seed: int) -> None:
    madness = fuzz_worker.Madness(tmp_path, seed)
    try:
        for _ in range(BURSTS):
            madness.burst()
        told = madness.end()
    finally:
        madness.kill()
    assert madness.faults == []
    assert told["answered"] == BURSTS
    assert told["malformed"] > 0
    assert {"Hello", "Started", "Failed", "Finished", "Preempted"} <= madness.answers.keys(), "it did take some of it"
