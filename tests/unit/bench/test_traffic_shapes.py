"""Traffic shapes of the benchmark: equal names give equal requests, and the generators do what they say."""

from __future__ import annotations

import random

import pytest

from controller.simulator.cli import run
from controller.simulator.results import model_results
from scripts.bench.autoscaling.against_hpa import compare, summary
from scripts.bench.autoscaling.late_shapes import find, settings
from scripts.bench.autoscaling.traffic import generators as g
from scripts.bench.autoscaling.traffic.catalog import Shape, all_shapes
from scripts.bench.autoscaling.traffic.drawn import busy_hours, drawn, quiet_days

SHAPES = all_shapes(None)
DRAWN = list(drawn(24, seed=7))
QUIET = list(quiet_days(12, seed=7))
BUSY = list(busy_hours(2, seed=7))


@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_ordered_and_within_its_hours(name: str) -> None:
    shape = SHAPES[name]
    times, work = shape.traffic(random.Random(name))[:2]
    assert len(times) == len(work) > 100
    assert list(times) == sorted(times)
    assert 0 <= times[0] <= times[-1] <= shape.hours * 3600 + 30
    assert min(work) > 0


@pytest.mark.parametrize("shape", [*DRAWN, *QUIET, *BUSY], ids=lambda shape: shape.name.partition(":")[0])
def test_drawn_shape_is_ordered_and_within_its_hours(shape: Shape) -> None:
    times, work = shape.traffic(random.Random(0))[:2]
    assert len(times) == len(work) > 20
    assert list(times) == sorted(times)
    assert 0 <= times[0] <= times[-1] <= shape.hours * 3600 + 30
    assert min(work) > 0


def test_drawn_shapes_follow_the_seed() -> None:
    assert [shape.name for shape in drawn(24, seed=7)] == [shape.name for shape in DRAWN]
    assert not {shape.name for shape in drawn(24, seed=8)} & {shape.name for shape in DRAWN}
    assert [shape.name for shape in quiet_days(12, seed=7)] == [shape.name for shape in QUIET]
    assert [shape.name for shape in busy_hours(2, seed=7)] == [shape.name for shape in BUSY]


def test_equal_seeds_give_equal_requests() -> None:
    shape = SHAPES["switching rates, mean 2 min"]
    assert shape.traffic(random.Random(1)) == shape.traffic(random.Random(1))
    assert shape.traffic(random.Random(1)) != shape.traffic(random.Random(2))


def test_square_wave_has_arrivals_in_the_first_half_only() -> None:
    assert {at % 90 < 45 for at in g.square(2.0, 90.0, 3600.0, random.Random(0))} == {True}


def test_halves_are_fixed_and_similar_in_size() -> None:
    design = sum(shape.design for shape in SHAPES.values())
    assert abs(2 * design - len(SHAPES)) <= 5


def test_step_with_short_starts_is_followed() -> None:
    scenario = SHAPES["step 0.3 to 4/s, starts of 5 s, 5 s allowed"].scenario()
    (row,) = model_results("slo_work", run("slo_work", scenario))
    assert row.in_slo >= 0.97
    assert row.gpu_hours <= 1.47  # Knative's formula with the best target


def test_settings_for_late_shapes_keep_to_the_maximum() -> None:
    shape = SHAPES["square 2/s, period 90 s"]
    changes = dict(settings(shape))
    assert changes["percentile: 99.9"] == {"slo": {"max_wait_s": shape.max_wait_s, "percentile": 99.9}}
    assert max(fields.get("min_workers", 0) for fields in changes.values()) < shape.max_workers


def test_late_shape_gets_the_cheapest_setting_that_holds() -> None:
    found = find(SHAPES["step 0.3 to 4/s, starts of 5 s, 5 s allowed"])
    holding = {name: row["gpu_hours"] for name, row in found["settings"].items() if row["in_time"] >= 99}
    assert found["best"] in holding
    assert holding[found["best"]] == min(holding.values())


@pytest.mark.parametrize("number", [6, 8])
def test_quiet_days_with_short_work_take_one_worker(number: int) -> None:
    found = summary([compare(QUIET[number])])
    assert found["both_hold"] == found["loads"] == 1
    assert 24 <= found["slo_work"]["gpu_hours"] <= 24.5
    assert found["gpu_hours_ratio_max"] <= 1.02


def test_days_that_not_both_hold_have_no_ratio() -> None:
    day = {"load": "d", "slo_work": {"in_time": 99.5, "gpu_hours": 30.0, "starts": 1}}
    found = summary([{**day, "hpa": {"in_time": 90.0, "gpu_hours": 24.0, "starts": 0}}])
    assert (found["both_hold"], found["gpu_hours_ratio_mean"], found["gpu_hours_ratio_max"]) == (0, None, None)
