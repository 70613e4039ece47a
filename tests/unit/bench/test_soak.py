"""The slope of the soak test."""

from __future__ import annotations

import random

import pytest

from scripts.soak import MAX_SLOPE, Sample, slope_of


@pytest.mark.parametrize(
    ("bytes_per_1000", "noise", "too_steep"),
    [
        (0.0, 0, False),
        (MAX_SLOPE - 1, 0, False),
        (MAX_SLOPE + 1, 0, True),
        (0.0, 1 << 20, False),
        (4 * MAX_SLOPE, 1 << 20, True),
        (-4 * MAX_SLOPE, 1 << 20, False),
        (2 * MAX_SLOPE, 1 << 26, False),  # within the error
    ],
)
def test_slope_is_judged_by_its_standard_error(bytes_per_1000: float, noise: int, too_steep: bool) -> None:
    rng = random.Random(1)
    samples = [
        Sample(n, int(80e6 + bytes_per_1000 * n / 1000 + rng.uniform(-noise, noise)))
        for n in range(100_000, 200_000, 1000)
    ]
    found = slope_of(samples)
    assert abs(found.slope - bytes_per_1000) <= max(4 * found.error, 1.0)
    assert found.is_too_steep is too_steep
