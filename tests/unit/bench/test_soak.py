"""What the soak test calls flat."""

from __future__ import annotations

import random

import pytest

from scripts.soak import MOST, Sample, slope_of


@pytest.mark.parametrize(
    ("bytes_per_1000", "noise", "too_steep"),
    [
        (0.0, 0, False),
        (MOST - 1, 0, False),
        (MOST + 1, 0, True),
        (0.0, 1 << 20, False),
        (4 * MOST, 1 << 20, True),
        (-4 * MOST, 1 << 20, False),
        (2 * MOST, 1 << 26, False),  # it may be so, or not
    ],
)
def test_the_slope_is_found_under_noise_and_judged_by_its_error(
    bytes_per_1000: float, noise: int, too_steep: bool
) -> None:
    chance = random.Random(1)
    samples = [
        Sample(n, int(80e6 + bytes_per_1000 * n / 1000 + chance.uniform(-noise, noise)))
        for n in range(100_000, 200_000, 1000)
    ]
    found = slope_of(samples)
    assert abs(found.slope - bytes_per_1000) <= max(4 * found.error, 1.0)
    assert found.too_steep is too_steep
