"""How many tasks may share a step, by what was seen of their cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batch_size import BUCKETS, Caps

SIZE = (512, 512)
LINEAR = {b: 0.008 + 0.003 * b for b in BUCKETS}  # gains 9 % from 8 to 12, 5 % from 12 to 16, 10 % from 12 to 24


def caps(points: dict[int, float], most: int = 32, *, fixed: bool = False, max_step_s: float | None = None) -> Caps:
    """Knows these points from three steps each, just now."""
    made = Caps(most, fixed=fixed, min_gain=0.05, max_step_s=max_step_s)
    for tasks, seconds in points.items():
        for _ in range(3):
            made.observe(SIZE, tasks, seconds, now=0.0)
    return made


def measured() -> Caps:
    made = Caps(32, fixed=False, min_gain=0.05, max_step_s=None)
    made.measured(SIZE, list(LINEAR.items()))
    return made


@pytest.mark.parametrize(
    ("points", "cap"),
    [
        ({}, 2),  # nothing is known: the first steps will tell
        ({1: 1.0, 2: 2.0}, 1),  # saturated by one image
        ({1: 1.0, 2: 1.0, 4: 2.0, 8: 4.0}, 2),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 8),  # four still gained: eight may be tried
        (LINEAR, 24),
        (dict.fromkeys(BUCKETS, 1.0), 32),  # as fast as one, however many
        ({1: 1.0, 2: 1.95, 4: 2.0}, 8),  # a plateau that ends
    ],
)
def test_a_larger_batch_must_gain(points: dict[int, float], cap: int) -> None:
    assert caps(points).of_size(SIZE, 1.0) == cap


def test_limits_bind_whatever_is_gained() -> None:
    assert caps(LINEAR, most=4).of_size(SIZE, 1.0) == 4
    assert caps(LINEAR, max_step_s=0.03).of_size(SIZE, 1.0) == 4, "0.032 s at 8"
    assert caps({1: 9.0, 2: 9.0}, max_step_s=1.0).of_size(SIZE, 1.0) == 1, "one image is never too slow"
    assert caps({1: 1.0, 2: 9.0}, most=12, fixed=True).of_size(SIZE, 1.0) == 12, "a configured cap is not argued with"
    assert caps({1: 0.1, 2: 9.0}, most=12, fixed=True, max_step_s=1.0).of_size(SIZE, 1.0) == 1


def test_a_few_slow_steps_change_nothing() -> None:
    made = caps(LINEAR)
    for _ in range(2):
        made.observe(SIZE, 24, 60.0, now=0.5)
    assert made.of_size(SIZE, 1.0) == 24
    first = caps({1: 1.0, 2: 1.0})
    first.observe(SIZE, 4, 60.0, now=0.5)  # kernels are chosen
    assert first.of_size(SIZE, 1.0) == 4


def test_a_slow_minute_at_a_large_batch_is_forgotten() -> None:
    made = caps({tasks: seconds for tasks, seconds in LINEAR.items() if tasks <= 24})
    for _ in range(15):
        made.observe(SIZE, 24, 60.0, now=10.0)
    assert made.of_size(SIZE, 11.0) == 12
    for now in (50.0, 100.0):  # meanwhile batches of twelve go on
        for _ in range(3):
            made.observe(SIZE, 12, LINEAR[12], now)
    assert made.of_size(SIZE, 100.0) == 16, "the next larger one is tried again"


def test_what_was_measured_stands_whatever_is_seen_later() -> None:
    made = measured()
    for _ in range(100):
        made.observe(SIZE, 4, 0.0001, now=1.0)  # half the work: requests without guidance
        made.observe(SIZE, 24, 60.0, now=1.0)
    assert made.of_size(SIZE, 2.0) == 24


def test_few_sizes_are_remembered_at_a_time() -> None:
    made = Caps(32, fixed=False, min_gain=0.05, max_step_s=None)
    made.measured(SIZE, [(1, 1.0)])
    for side in range(1, 1000):
        made.observe((side, side), 1, 1.0, now=float(side))
    assert len(made.curves(1000.0)) == 17


def test_what_did_not_fit_is_not_tried_again_soon() -> None:
    made = measured()
    made.did_not_fit("key", 6, now=100.0)
    assert made.of("key", SIZE, now=101.0) == 6
    assert made.of("other", SIZE, now=101.0) == 24
    assert made.of_any(SIZE, now=101.0) == 6, "an idle worker promises no more"
    made.did_not_fit("key", 0, now=102.0)
    assert made.of("key", SIZE, now=103.0) == 1
    assert made.of("key", SIZE, now=10_000.0) == made.of_any(SIZE, now=10_000.0) == 24


def test_curves_tell_what_was_measured() -> None:
    [curve] = caps({1: 1.0, 2: 1.5}).curves(1.0)
    assert (curve.width, curve.height, curve.cap, curve.points) == (512, 512, 4, [(1, 1.0), (2, 1.5)])


@given(
    st.lists(st.tuples(st.sampled_from([*BUCKETS, 3, 40]), st.floats(1e-6, 100))),
    st.integers(1, 64),
    st.booleans(),
    st.none() | st.floats(0.001, 10),
)
def test_a_cap_is_always_a_batch(
    seen: list[tuple[int, float]], most: int, fixed: bool, max_step_s: float | None
) -> None:
    made = Caps(most, fixed=fixed, min_gain=0.05, max_step_s=max_step_s)
    for tasks, seconds in seen:
        made.observe(SIZE, tasks, seconds, now=0.0)
        assert 1 <= made.of_size(SIZE, 1.0) <= most
