"""The lower bound: no policy, reference autoscaler or schedule that keeps the promise costs less."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.scaling import Scaling
from controller.policies import POLICIES
from controller.simulator.cli import run
from controller.simulator.cost_bounds import cost_bounds
from controller.simulator.model_sim import WorkerProfile, batch_slowdowns
from controller.simulator.option_checks import InvalidScenario
from controller.simulator.reference import BASELINES
from controller.simulator.reference import lower_bound as module
from controller.simulator.reference.linear_program import BoundUnavailable
from controller.simulator.reference.lower_bound import Fleet, lower_bound_s, min_hours
from controller.simulator.reference.oracle import best_schedule
from controller.simulator.results import model_results
from controller.simulator.scenarios import Scenario, Traffic

FLEET = Fleet((1.0,), 40.0, 10.0, 0.99, initial_workers=1, min_workers=1, max_workers=4)
RUNNABLE = [*(name for name in POLICIES if name != "schedule"), *BASELINES]


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Up to ten minutes of requests in bunches, with any worker profile and promise."""
    bunches = draw(st.lists(st.tuples(st.floats(0, 540), st.integers(1, 8)), min_size=1, max_size=12))
    times = sorted(at for at, count in bunches for _ in range(count))
    work = draw(st.lists(st.sampled_from([0.0, 0.5, 4.0, 40.0, 200.0]), min_size=1, max_size=6))
    max_workers, min_workers = draw(st.integers(2, 5)), draw(st.integers(0, 2))
    profile = WorkerProfile(
        "m",
        batch_slowdowns(draw(st.integers(1, 3)), draw(st.sampled_from([0.0, 0.4, 1.0]))),
        tuple(draw(st.lists(st.sampled_from([0.5, 5.0, 40.0, 130.0]), min_size=1, max_size=2))),
        mean_lifetime_s=draw(st.sampled_from([None, None, 200.0])),
    )
    scaling = Scaling(
        min_workers=min_workers,
        max_workers=max_workers,
        initial_workers=draw(st.integers(min_workers, max_workers)),
        standby=draw(st.sampled_from([0, 0, 1])),
        slo={"max_wait_s": draw(st.sampled_from([0.5, 10.0, 60.0])), "percentile": draw(st.sampled_from([50, 90, 99]))},
        scale_to_zero={"idle_s": 30},
    )
    traffic = Traffic(times, [work[number % len(work)] for number in range(len(times))])
    return Scenario({"m": traffic}, {"m": profile}, {"m": scaling}, max_workers, 600.0, seed=draw(st.integers(0, 3)))


@settings(max_examples=12, deadline=None)
@given(scenarios(), st.lists(st.sampled_from(RUNNABLE), min_size=3, max_size=3, unique=True))
def test_no_policy_beats_the_bound(scenario: Scenario, names: list[str]) -> None:
    bound = min_hours(scenario, "m")
    for name in names:
        (row,) = model_results(name, run(name, scenario))
        if not row.unserved and row.in_slo >= scenario.scalings["m"].slo.percentile / 100:
            assert bound <= row.gpu_hours + 1e-9, name


@settings(max_examples=4, deadline=None)
@given(scenarios())
def test_best_schedule_does_not_beat_the_bound(scenario: Scenario) -> None:
    scenario = replace(scenario, profiles={"m": replace(scenario.profiles["m"], mean_lifetime_s=None)})
    best = best_schedule(scenario)
    assert best is None or min_hours(scenario, "m") <= best.gpu_hours + 1e-9


def test_degenerate_program_is_solved() -> None:
    """The interior point method gives up on this one."""
    fleet = replace(FLEET, slowdowns=(1.0, 2.0), start_s=0.5, max_wait_s=0.5, in_time=0.5, max_workers=2)
    fleet = replace(fleet, initial_workers=0, min_workers=0)
    assert lower_bound_s(Traffic([270.0] * 8, [40.0] * 8), fleet, 600.0) >= 320.0 - 1


STEADY = Traffic([float(number) for number in range(600)], [2.0] * 600)


@pytest.mark.parametrize(
    ("traffic", "changes", "low_s", "high_s"),
    [
        # Two workers are always busy. With one, others must catch up with what waits after its start.
        (STEADY, {"initial_workers": 2}, 1180.0, 1201.0),
        (STEADY, {}, 1240.0, 1500.0),
        # No requests: the minimum is paid.
        (Traffic([], []), {"min_workers": 2, "initial_workers": 2}, 1199.9, 1200.1),
        (Traffic([], []), {"min_workers": 0}, 0.0, 0.1),
        # A single request for ten workers, of which a full batch does four at once.
        (
            Traffic([300.0] * 40, [10.0] * 40),
            {"slowdowns": (1.0,) * 4, "min_workers": 0, "max_workers": 10},
            100.0,
            600.0,
        ),
        # A request is late without a worker from the start, so none or all of them must be in time.
        (Traffic([0.0], [5.0]), {"initial_workers": 0, "min_workers": 0}, math.inf, math.inf),
    ],
    ids=["steady", "late start", "idle", "nothing", "batch", "impossible"],
)
def test_known_bounds(traffic: Traffic, changes: dict[str, Any], low_s: float, high_s: float) -> None:
    assert low_s <= lower_bound_s(traffic, replace(FLEET, **changes), 600.0) <= high_s


def test_bound_falls_with_the_promise() -> None:
    bunch = Traffic([300.0] * 40, [10.0] * 40)
    bounds = [lower_bound_s(bunch, replace(FLEET, in_time=share, max_workers=40), 600.0) for share in (0.99, 0.7, 0.3)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[-1] + 100


def test_requests_outside_the_span_count() -> None:
    outside = Traffic([-5.0, *STEADY.times, 700.0], [50.0, *STEADY.work, 50.0])
    fleet = replace(FLEET, initial_workers=2)
    assert lower_bound_s(outside, fleet, 600.0) >= lower_bound_s(STEADY, fleet, 600.0) + 49.0


def test_too_many_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REQUESTS", 599)
    with pytest.raises(BoundUnavailable, match="599 requests at most, not 600"):
        lower_bound_s(STEADY, FLEET, 600.0)


def several_models() -> Scenario:
    traffic = {name: Traffic(STEADY.times[::3], STEADY.work[::3]) for name in "ab"}
    scaling = Scaling(max_workers=2)
    return Scenario(traffic, {n: WorkerProfile(n) for n in "ab"}, dict.fromkeys("ab", scaling), 4, 600.0)


def test_bounds_of_several_models_are_added() -> None:
    bounds = cost_bounds("lower", several_models())
    assert set(bounds.lower_hours) == {"a", "b"}
    total, best = bounds.total()
    assert total == pytest.approx(2 * bounds.lower_hours["a"])
    assert best is None
    assert "99 %" in bounds.notes()[0]


@pytest.mark.parametrize("text", ["low", "-1", "inf", "0"])
def test_invalid_hours_are_rejected(text: str) -> None:
    with pytest.raises(InvalidScenario, match="lower or search"):
        cost_bounds(text, several_models())
