"""A recorded day of image traffic, which is not part of the repository; without it these tests skip."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from controller.simulator.cli import run
from controller.simulator.results import PolicyResult, model_results
from controller.simulator.scenarios import PRESETS, Traffic, from_preset
from controller.simulator.traces import read_trace

_REPOSITORY = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
FOLDER = Path(os.environ.get("TRACES_DIR", _REPOSITORY.parent / "shared" / "traces"))
DAY = FOLDER / "gentd26_day.csv"

pytestmark = pytest.mark.skipif(not DAY.exists(), reason=f"{DAY} is absent; set TRACES_DIR to its folder")


@functools.cache
def day() -> Traffic:
    (traffic,) = read_trace(DAY).values()
    return traffic


def simulated(policy: str, preset: str, start_s: float = 40.0) -> PolicyResult:
    (row,) = model_results(policy, run(policy, from_preset(PRESETS[preset], day(), 86_400.0, cold_starts_s=(start_s,))))
    return row


def test_trace_has_expected_size() -> None:
    assert len(day().times) == 34_421
    assert sum(day().work) / len(day().work) == pytest.approx(18.2, abs=0.1)


@pytest.mark.parametrize(
    ("policy", "preset", "in_slo", "gpu_hours"),
    [("hpa", "s2", 0.997, 114.0), ("lightning", "s2", 0.978, 91.5), ("hpa", "s3", 0.945, 80.9)],
)
def test_reference_matches_independent_simulation(policy: str, preset: str, in_slo: float, gpu_hours: float) -> None:
    row = simulated(policy, preset)
    assert row.unserved == 0
    assert row.in_slo == pytest.approx(in_slo, abs=0.005)
    assert row.gpu_hours == pytest.approx(gpu_hours, rel=0.02)


#: GPU-hours of the cheapest known schedules
#: (`scripts/bench/autoscaling/compare_policies.py --bound search`).
BEST = {"s2": 58.36, "s3": 52.69, "s2, start 5 s": 54.15}


@pytest.mark.parametrize(("preset", "max_ratio"), [("s2", 1.48), ("s3", 1.33)])
def test_slo_work_meets_goal_within_cost_bound(preset: str, max_ratio: float) -> None:
    row = simulated("slo_work", preset)
    assert row.unserved == 0
    assert row.in_slo >= 0.99
    assert row.gpu_hours <= max_ratio * BEST[preset]
    assert row.cold_starts <= 150


def test_short_start_lowers_cost() -> None:
    row = simulated("slo_work", "s2", start_s=5.0)
    assert row.in_slo >= 0.99
    assert row.gpu_hours <= 1.30 * BEST["s2, start 5 s"]


def test_mixed_sizes_limit_cold_starts() -> None:
    row = simulated("slo_work", "s6")
    assert row.in_slo >= 0.99
    assert row.gpu_hours <= 130
    assert row.cold_starts <= 800
