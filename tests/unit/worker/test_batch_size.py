"""The batch limit by measured and observed step times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.inputs import Shape
from worker.batch_size import BUCKETS, BatchSizer

SIZE = Shape("512x512", 262144)
LINEAR = {b: 0.008 + 0.003 * b for b in BUCKETS}  # gains 9 % from 8 to 12, 5 % from 12 to 16, 10 % from 12 to 24


def sizer(
    points: dict[int, float], max_batch: int = 32, *, fixed: bool = False, max_step_s: float | None = None
) -> BatchSizer:
    """Return a sizer that has observed three steps at each point."""
    made = BatchSizer(max_batch, fixed=fixed, min_gain=0.05, max_step_s=max_step_s)
    for tasks, seconds in points.items():
        for _ in range(3):
            made.observe(SIZE, tasks, seconds, now=0.0)
    return made


def measured() -> BatchSizer:
    made = BatchSizer(32, fixed=False, min_gain=0.05, max_step_s=None)
    made.set_measured(SIZE, list(LINEAR.items()))
    return made


@pytest.mark.parametrize(
    ("points", "cap"),
    [
        ({}, 2),  # no step time is known yet
        ({1: 1.0, 2: 2.0}, 1),  # saturated by one image
        ({1: 1.0, 2: 1.0, 4: 2.0, 8: 4.0}, 2),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 8),  # four still gains: eight may be tried
        (LINEAR, 24),
        (dict.fromkeys(BUCKETS, 1.0), 32),  # as fast as one
        ({1: 1.0, 2: 1.95, 4: 2.0}, 8),  # a plateau that ends
    ],
)
def test_larger_batch_is_used_only_if_it_gains(points: dict[int, float], cap: int) -> None:
    assert sizer(points).limit_and_points(SIZE, 1.0)[0] == cap


def test_configured_limits_hold_whatever_the_gain() -> None:
    assert sizer(LINEAR, max_batch=4).limit_and_points(SIZE, 1.0)[0] == 4
    assert sizer(LINEAR, max_step_s=0.03).limit_and_points(SIZE, 1.0)[0] == 4, "0.032 s at 8"
    assert sizer({1: 9.0, 2: 9.0}, max_step_s=1.0).limit_and_points(SIZE, 1.0)[0] == 1, "one image is never too slow"
    assert sizer({1: 1.0, 2: 9.0}, max_batch=12, fixed=True).limit_and_points(SIZE, 1.0)[0] == 12, (
        "the configured limit"
    )
    assert sizer({1: 0.1, 2: 9.0}, max_batch=12, fixed=True, max_step_s=1.0).limit_and_points(SIZE, 1.0)[0] == 1


def test_few_slow_steps_do_not_change_limit() -> None:
    made = sizer(LINEAR)
    for _ in range(2):
        made.observe(SIZE, 24, 60.0, now=0.5)
    assert made.limit_and_points(SIZE, 1.0)[0] == 24
    first = sizer({1: 1.0, 2: 1.0})
    first.observe(SIZE, 4, 60.0, now=0.5)  # the first step chooses kernels
    assert first.limit_and_points(SIZE, 1.0)[0] == 4


def test_slow_steps_expire_after_a_minute() -> None:
    made = sizer({tasks: seconds for tasks, seconds in LINEAR.items() if tasks <= 24})
    for _ in range(15):
        made.observe(SIZE, 24, 60.0, now=10.0)
    assert made.limit_and_points(SIZE, 11.0)[0] == 12
    for now in (50.0, 100.0):  # batches of twelve continue
        for _ in range(3):
            made.observe(SIZE, 12, LINEAR[12], now)
    assert made.limit_and_points(SIZE, 100.0)[0] == 16, "the next larger one is tried again"


def test_measured_times_are_not_changed_by_observed_ones() -> None:
    made = measured()
    for _ in range(100):
        made.observe(SIZE, 4, 0.0001, now=1.0)  # half the work: requests without guidance
        made.observe(SIZE, 24, 60.0, now=1.0)
    assert made.limit_and_points(SIZE, 2.0)[0] == 24


@pytest.mark.parametrize(
    ("measured_to", "observed", "cap"),
    [
        (4, {}, 8),  # the next larger batch is tried
        (4, {8: LINEAR[8]}, 12),
        (4, {8: LINEAR[8], 12: LINEAR[12]}, 16),
        (4, {8: 60.0}, 4),  # it gains nothing
        (2, {4: LINEAR[4], 8: LINEAR[8], 12: LINEAR[12], 16: LINEAR[16], 24: LINEAR[24]}, 32),
    ],
)
def test_use_extends_times_measured_on_busy_machine(measured_to: int, observed: dict[int, float], cap: int) -> None:
    made = BatchSizer(32, fixed=False, min_gain=0.05, max_step_s=None)
    made.set_measured(SIZE, [(tasks, seconds) for tasks, seconds in LINEAR.items() if tasks <= measured_to])
    for tasks, seconds in observed.items():
        for _ in range(3):
            made.observe(SIZE, tasks, seconds, now=0.0)
    assert made.limit_and_points(SIZE, 1.0)[0] == cap
    [curve] = made.curves(1.0)
    assert [tasks for tasks, _ in curve.points] == sorted(
        {tasks for tasks in BUCKETS if tasks <= measured_to} | {*observed}
    )


def test_number_of_learnt_sizes_is_bounded() -> None:
    made = BatchSizer(32, fixed=False, min_gain=0.05, max_step_s=None)
    made.set_measured(SIZE, [(1, 1.0)])
    for side in range(1, 1000):
        made.observe(Shape(str(side)), 1, 1.0, now=float(side))
    assert len(made.curves(1000.0)) == 17


def test_batch_that_did_not_fit_is_not_retried_soon() -> None:
    made = measured()
    made.on_out_of_memory("key", 6, now=100.0)
    assert made.limit(SIZE, key="key", now=101.0) == 6
    assert made.limit(SIZE, key="other", now=101.0) == 24
    assert made.limit(SIZE, now=101.0) == 6, "an idle worker promises no more"
    made.on_out_of_memory("key", 0, now=102.0)
    assert made.limit(SIZE, key="key", now=103.0) == 1
    assert made.limit(SIZE, key="key", now=10_000.0) == made.limit(SIZE, now=10_000.0) == 24


def test_curves_report_known_times() -> None:
    [curve] = sizer({1: 1.0, 2: 1.5}).curves(1.0)
    assert (curve.shape, curve.cap, curve.points) == (SIZE, 4, [(1, 1.0), (2, 1.5)])


@given(
    st.lists(st.tuples(st.sampled_from([*BUCKETS, 3, 40]), st.floats(1e-6, 100))),
    st.integers(1, 64),
    st.booleans(),
    st.none() | st.floats(0.001, 10),
)
def test_limit_is_between_one_and_max_batch(
    seen: list[tuple[int, float]], max_batch: int, fixed: bool, max_step_s: float | None
) -> None:
    made = BatchSizer(max_batch, fixed=fixed, min_gain=0.05, max_step_s=max_step_s)
    for tasks, seconds in seen:
        made.observe(SIZE, tasks, seconds, now=0.0)
        assert 1 <= made.limit_and_points(SIZE, 1.0)[0] <= max_batch


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from([1, 2, 4, 8, 12]), st.floats(1e-3, 10), st.floats(0, 40)),
        max_size=60,
    ),
    st.none() | st.floats(0.01, 10),
)
def test_limit_is_always_that_of_the_known_times(
    seen: list[tuple[int, int, float, float]], max_step_s: float | None
) -> None:
    """Also where it is kept: steps are learnt, they expire, and sizes are forgotten."""
    made, now = BatchSizer(32, fixed=False, min_gain=0.05, max_step_s=max_step_s), 0.0
    made.set_measured(SIZE, [(1, 1.0), (2, 1.1)])
    shapes = [SIZE, *(Shape(str(number)) for number in range(20))]
    for place, tasks, seconds, passed_s in seen:
        now += passed_s
        for _ in range(3):
            made.observe(shapes[place], tasks, seconds, now)
        for shape in (SIZE, shapes[place]):
            assert made.limit(shape, now) == made.limit_and_points(shape, now)[0]
    made.set_measured(SIZE, [(1, 1.0), (2, 5.0)])
    assert made.limit(SIZE, now) == made.limit_and_points(SIZE, now)[0]
