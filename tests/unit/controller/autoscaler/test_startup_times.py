"""Estimates of the start-up time from measured starts."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.scaling import Scaling
from controller.autoscaler.model_state import (
    FIRST_STANDBY_S,
    ModelState,
    RecentStarts,
    next_start_s,
)
from controller.autoscaler.persistence import SavedModel, pack, unpack
from controller.policies import static
from controller.types import Decision, Observation, Replica, Stage, WorkerLimits
from host.types import WorkerProcess

MEASURED = RecentStarts(cold=(20.0, 30.0, 25.0), standby=(2.0, 4.0))


@pytest.mark.parametrize(
    ("starts", "scaling", "cold", "standby"),
    [
        (RecentStarts(), Scaling(), 40.0, FIRST_STANDBY_S),
        (MEASURED, Scaling(), 30.0, 4.0),
        (RecentStarts(cold=(20.0,)), Scaling(), 20.0, FIRST_STANDBY_S),
        # A configured value overrides measurements.
        (MEASURED, Scaling(cold_start_s=60), 60.0, 4.0),
        (MEASURED, Scaling(standby_start_s=10), 30.0, 10.0),
        # A start from standby never takes longer than a cold start.
        (RecentStarts(), Scaling(cold_start_s=3), 3.0, 3.0),
        (RecentStarts(cold=(1.0,), standby=(9.0,)), Scaling(), 1.0, 1.0),
        (MEASURED, Scaling(cold_start_s=5, standby_start_s=10), 5.0, 5.0),
        # The estimate is the 90th percentile: one of ten starts may take longer.
        (RecentStarts(cold=(*[5.0] * 9, 100.0)), Scaling(), 5.0, 5.0),
        (RecentStarts(cold=(*[5.0] * 8, 100.0)), Scaling(), 100.0, 5.0),
    ],
)
def test_estimate_is_configured_measured_or_guessed(
    starts: RecentStarts, scaling: Scaling, cold: float, standby: float
) -> None:
    assert next_start_s(starts, scaling, 40.0, standby=False) == cold
    assert next_start_s(starts, scaling, 40.0, standby=True) == standby


@given(st.lists(st.tuples(st.floats(0.1, 600), st.booleans()), max_size=60))
def test_only_last_twenty_starts_of_each_kind_count(history: list[tuple[float, bool]]) -> None:
    starts = RecentStarts()
    for seconds, standby in history:
        starts = starts.with_sample(seconds, standby=standby)
    assert list(starts.cold) == [seconds for seconds, standby in history if not standby][-20:]
    assert list(starts.standby) == [seconds for seconds, standby in history if standby][-20:]
    if starts.cold:
        estimate = next_start_s(starts, Scaling(), 40.0, standby=False)
        assert sum(seconds > estimate for seconds in starts.cold) <= 0.1 * len(starts.cold)
        assert estimate in starts.cold


def state() -> ModelState:
    limits = WorkerLimits(0, 4, 60, 30, 10)
    return ModelState(Scaling(), limits, static.decide, ["a/cuda:0", "b/cuda:0"], Decision(1, "x"))


def ready(name: str, device: str, took_s: float, *, standby: bool = False) -> Replica:
    child = WorkerProcess(name, "m", device, 1, 0.0, ready_at=took_s)
    return Replica(child, Stage.READY, started_in_s=took_s, from_standby=standby)


@pytest.mark.parametrize(
    ("machine", "expected_s"),
    [
        ("a", 20.0),
        ("b", 90.0),
        # Without starts there, those of all machines count.
        ("c", 90.0),
    ],
)
def test_estimate_is_that_of_the_next_machine(machine: str, expected_s: float) -> None:
    model = state()
    replicas = [ready("w1", "a/cuda:0", 20.0), ready("w2", "b/cuda:0", 90.0)]
    model.observe(Observation("m", None, replicas), 100.0)
    model.next_machine = machine
    assert model.observe(Observation("m", None, replicas), 101.0).cold_start_s == expected_s


def test_start_times_of_machines_are_bounded_and_kept() -> None:
    model = state()
    for number in range(300):
        model.observe(Observation("m", None, [ready(f"w{number}", f"box{number}/cuda:0", 1.0 + number)]), 1000.0)
    assert len(model.machine_starts) == 256
    assert "box299" in model.machine_starts
    saved = SavedModel("slo_work", model.starts, model.memory, model.machine_starts)
    assert unpack(pack({"m": saved}, 0.0), 0.0, 0.0)["m"].machine_starts == model.machine_starts
    earlier = msgspec.json.decode(pack({"m": saved}, 0.0))
    del earlier["m"]["machine_starts"]
    assert unpack(msgspec.json.encode(earlier), 0.0, 0.0)["m"].starts == model.starts
