"""A day of real image traffic. The trace may not be shipped: without it these tests say so and do nothing."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from controller.simulator.cli import run
from controller.simulator.results import Row, rows
from controller.simulator.scenarios import PRESETS, Traffic, from_preset
from controller.simulator.traces import read_trace

FOLDER = Path(os.environ.get("TRACES_DIR", Path(__file__).parents[5] / "shared" / "traces"))
DAY = FOLDER / "gentd26_day.csv"

pytestmark = pytest.mark.skipif(not DAY.exists(), reason=f"needs the trace {DAY}, or its folder in TRACES_DIR")


@functools.cache
def day() -> Traffic:
    (traffic,) = read_trace(DAY).values()
    return traffic


def simulated(policy: str, preset: str, start_s: float = 40.0) -> Row:
    (row,) = rows(policy, run(policy, from_preset(PRESETS[preset], day(), 86_400.0, cold_starts_s=(start_s,))))
    return row


def test_the_trace_is_read_as_it_is() -> None:
    assert len(day().times) == 34_421
    assert sum(day().work) / len(day().work) == pytest.approx(18.2, abs=0.1)


@pytest.mark.parametrize(
    ("policy", "preset", "in_slo", "gpu_hours"),
    [("hpa", "s2", 0.997, 114.0), ("seed", "s2", 0.978, 91.5), ("hpa", "s3", 0.945, 80.9)],
)
def test_others_do_as_in_an_independent_simulation(policy: str, preset: str, in_slo: float, gpu_hours: float) -> None:
    row = simulated(policy, preset)
    assert row.unserved == 0
    assert row.in_slo == pytest.approx(in_slo, abs=0.005)
    assert row.gpu_hours == pytest.approx(gpu_hours, rel=0.02)


#: GPU-hours of the cheapest schedules that were found, knowing the future
#: (`scripts/bench/autoscaling/compare_policies.py --search`).
BEST = {"s2": 58.36, "s3": 52.69, "s2, start 5 s": 54.15}


@pytest.mark.parametrize(("preset", "most"), [("s2", 1.45), ("s3", 1.35)])
def test_one_configuration_holds_the_promise_at_a_fair_price(preset: str, most: float) -> None:
    row = simulated("slo_work", preset)
    assert row.unserved == 0
    assert row.in_slo >= 0.99
    assert row.gpu_hours <= most * BEST[preset]
    assert row.cold_starts <= 200


def test_a_short_start_is_worth_more_than_anything() -> None:
    row = simulated("slo_work", "s2", start_s=5.0)
    assert row.in_slo >= 0.99
    assert row.gpu_hours <= 1.30 * BEST["s2, start 5 s"]


def test_sizes_that_differ_do_not_make_workers_come_and_go() -> None:
    row = simulated("slo_work", "s6")
    assert row.in_slo >= 0.99
    assert row.gpu_hours <= 130
    assert row.cold_starts <= 800
