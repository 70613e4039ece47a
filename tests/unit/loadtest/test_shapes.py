"""Shapes of the load, planned arrivals, and recordings."""

from __future__ import annotations

import random
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.simulator.trace_rows import InvalidTrace
from loadbalancer.metrics.arrival_log import COLUMNS
from scripts.loadtest_lib.plan import RecordedRequest
from scripts.loadtest_lib.recording import read_recording
from scripts.loadtest_lib.shapes import KINDS, SPIKE_BASE, Kind, LoadShape, poisson_arrivals, users_at


@pytest.mark.parametrize(
    ("shape", "at_s", "level"),
    [
        (LoadShape("steady", 100), 0, 1),
        (LoadShape("steady", 100), 99.9, 1),
        (LoadShape("steady", 100), 100, 0),
        (LoadShape("steady", 100), -1, 0),
        (LoadShape("steady", 100, ramp_s=20), 5, 0.25),
        (LoadShape("steady", 100, ramp_s=20), 50, 1),
        (LoadShape("ramp", 100), 25, 0.25),
        (LoadShape("spike", 100), 39.9, SPIKE_BASE),
        (LoadShape("spike", 100), 40, 1),
        (LoadShape("spike", 100), 60, SPIKE_BASE),
        (LoadShape("spike", 100, ramp_s=10), 5, SPIKE_BASE / 2),
        (LoadShape("replay", 100), 50, 1),
    ],
)
def test_level(shape: LoadShape, at_s: float, level: float) -> None:
    assert shape.level(at_s) == pytest.approx(level)


@given(st.sampled_from(KINDS), st.floats(1, 1000), st.floats(0, 0.99), st.floats(-10, 2000))
def test_level_is_a_share(kind: Kind, seconds: float, ramp: float, at_s: float) -> None:
    assert 0 <= LoadShape(kind, seconds, ramp * seconds).level(at_s) <= 1


def test_test_is_never_without_users() -> None:
    assert users_at(LoadShape("ramp", 100), 50, 0) == 1
    assert users_at(LoadShape("ramp", 100), 50, 99) == 50


def test_arrivals_are_ordered_and_in_the_test() -> None:
    times = list(poisson_arrivals(LoadShape("steady", 50), 20, random.Random(1)))
    assert all(first <= second for first, second in pairwise(times))
    assert 0 < times[0] <= times[-1] < 50
    assert len(times) == pytest.approx(1000, rel=0.15)


def test_arrivals_follow_the_shape() -> None:
    times = list(poisson_arrivals(LoadShape("spike", 100), 50, random.Random(2)))
    inside = sum(40 <= at < 60 for at in times)
    assert inside == pytest.approx(1000, rel=0.15)
    assert len(times) - inside == pytest.approx(SPIKE_BASE * 80 * 50, rel=0.15)


@given(st.integers(1, 7))
def test_processes_share_all_arrivals(processes: int) -> None:
    def times() -> list[float]:
        return list(poisson_arrivals(LoadShape("steady", 10), 30, random.Random(3)))

    shares = [list(islice(times(), number, None, processes)) for number in range(processes)]
    assert sorted(at for share in shares for at in share) == times()


def test_recording_is_compressed_and_grouped(tmp_path: Path) -> None:
    file = tmp_path / "arrivals.csv"
    rows = [
        "1010.000,sd,20,64x64,1,0.1,0.1,0.1,done",
        "1000.000,sd,10,64x128,2,0.1,0.1,0.1,done",
        "1000.000,sd,10,64x128,2,0.1,0.1,0.1,done",
        "1030.000,words,30,,1,0.1,,,cancelled",
    ]
    file.write_text("\n".join([COLUMNS, *rows]) + "\n")
    assert read_recording(file, 10.0) == (
        RecordedRequest(0.0, "sd", 10, "64x128", 2),
        RecordedRequest(1.0, "sd", 20, "64x64", 1),
        RecordedRequest(3.0, "words", 30, "", 1),
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (f"{COLUMNS}\n", "has no requests"),
        ("arrived,model\n1,sd\n", "the column steps is missing"),
        (f"{COLUMNS}\nnever,sd,1,64x64,1,,,,done\n", "line 2"),
    ],
)
def test_bad_recording_says_why(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "arrivals.csv"
    file.write_text(content)
    with pytest.raises(InvalidTrace, match=reason):
        read_recording(file, 1.0)
