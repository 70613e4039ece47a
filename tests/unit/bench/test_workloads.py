"""The benchmark's pure functions: arrivals, rates, quantiles and batch selection."""

import math
from itertools import islice, pairwise

import pytest

from scripts.bench.serving.workloads import (
    QueuedRequest,
    Steps,
    best_batch,
    completion_rate,
    next_batch,
    poisson,
    quantile,
    request_stream,
)
from wire.inputs import ImageInputs

BASE = ImageInputs("a seven", 64, 64, 25, 3.0, 0, "ddim")


@pytest.mark.parametrize(
    ("text", "low", "high", "mean"), [("25", 25, 25, 25), ("10-50", 10, 50, 30), ("7-8", 7, 8, 7.5)]
)
def test_steps_parse_number_or_range(text: str, low: int, high: int, mean: float) -> None:
    steps = Steps.parse(text)
    assert (steps.low, steps.high, steps.mean) == (low, high, mean)


@pytest.mark.parametrize("text", ["", "0", "50-10", "a", "1-x"])
def test_invalid_steps_rejected(text: str) -> None:
    with pytest.raises(ValueError):
        Steps.parse(text)


def test_request_stream_deterministic_and_distinct() -> None:
    first, again = (list(islice(request_stream(BASE, Steps(10, 50), "round 0"), 200)) for _ in range(2))
    other = list(islice(request_stream(BASE, Steps(10, 50), "round 1"), 200))
    assert [one.inputs for one in first] == [one.inputs for one in again]
    assert len({(one.inputs.prompt, one.inputs.seed) for one in first + other}) == 400
    assert len({one.task for one in first + other}) == 400
    assert {one.inputs.steps for one in first} <= set(range(10, 51))
    assert len({one.inputs.steps for one in first}) > 30


@pytest.mark.parametrize(("rate", "seconds", "count"), [(10.0, 60.0, 600), (0.5, 20.0, 10), (0.01, 1.0, 1)])
def test_arrivals_match_rate_in_order(rate: float, seconds: float, count: int) -> None:
    times = poisson(rate, seconds, "a")
    assert len(times) == count
    assert times == sorted(times) == poisson(rate, seconds, "a") != poisson(rate, seconds, "b")
    assert 0 <= times[0] <= times[-1] < seconds


def test_interarrival_times_are_exponential() -> None:
    times = poisson(10.0, 2000.0, "a")
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.1, rel=0.01)
    # An exponential distribution has equal mean and standard deviation; regular arrivals have none.
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize(
    ("times", "amounts", "expected"),
    [
        # A batch of four every two seconds: a count would give 20 or 24 in 10 s, depending on the interval.
        ([t for t in (0.5, 2.5, 4.5, 6.5, 8.5) for _ in range(4)], [1.0] * 20, 2.0),
        ([t for t in (0.0, 2.0, 4.0, 6.0, 8.0, 10.0) for _ in range(4)], [1.0] * 24, 2.0),
        ([8.0, 2.0, 6.0, 4.0], [25.0] * 4, 12.5),
        ([5.0, 5.001, 5.002], [1.0] * 3, 0.3),  # one burst says nothing about the time between bursts
        ([5.0], [30.0], 3.0),
        ([], [], 0.0),
    ],
)
def test_completion_rate_independent_of_batch_boundaries(
    times: list[float], amounts: list[float], expected: float
) -> None:
    assert completion_rate(times, amounts, 0.0, 10.0) == pytest.approx(expected, rel=0.1)


def test_quantile_of_empty_is_nan() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert math.isnan(quantile([], 0.5))


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 1.2, 4: 1.8, 8: 3.6}, 4),
        ({1: 1.0, 2: 1.97}, 1),  # a gain of 1.5 % is too small
        ({1: 1.0, 2: 2.1, 4: 2.0}, 4),
    ],
)
def test_best_batch_is_smallest_with_gain(seconds: dict[int, float], best: int) -> None:
    assert best_batch(seconds, min_gain=0.05) == best


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ([], 0.5),
        ([(25, 9.8)], 0.3),  # its window ends in 0.3 s
        ([(25, 9.5)], [0]),
        ([(25, 9.9), (25, 9.95), (25, 9.97)], [0, 1, 2]),  # full
        ([(25, 9.0), (30, 9.1), (25, 9.9)], [0, 2]),  # equal steps only, the oldest first
        ([(30, 9.8), (25, 9.9), (25, 9.9), (25, 9.9), (25, 9.9)], [1, 2, 3]),
        ([(30, 9.8), (25, 9.7)], 0.2),
    ],
)
def test_request_batch_starts_when_full_or_window_over(
    waiting: list[tuple[int, float]], expected: list[int] | float
) -> None:
    chosen = next_batch([QueuedRequest(*one) for one in waiting], now=10.0, cap=3, window_s=0.5)
    assert chosen == (expected if isinstance(expected, list) else pytest.approx(expected))
