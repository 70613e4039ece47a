"""The index of dispersion of arrivals, estimated from successive periods."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from configs.scaling import Scaling
from controller.policies.queueing import DispersionIndex
from controller.types import Queue

SCALING = Scaling(look_back_period_s=90)


def updated(counts: DispersionIndex, recent: int, now: float, uptime_s: float = 1e6) -> DispersionIndex:
    return counts.updated(Queue(0, 0, arrivals_short_window=recent, uptime_s=uptime_s), SCALING, now)


def after(periods: Sequence[int], counts: DispersionIndex | None = None) -> DispersionIndex:
    counts = counts or DispersionIndex()
    for number, recent in enumerate(periods):
        counts = updated(counts, recent, 90.0 * number)
    return counts


def bursts(size: int, periods: int) -> list[int]:
    """Return the arrivals per period, about 40, in batches of this size."""
    rng = random.Random(size)
    return [size * sum(rng.random() < 40 / size / 1000 for _ in range(1000)) for _ in range(periods)]


@pytest.mark.parametrize(("size", "low", "high"), [(1, 1.0, 1.4), (2, 1.5, 2.6), (5, 3.0, 6.5)])
def test_bursts_raise_the_dispersion_index(size: int, low: float, high: float) -> None:
    assert low <= after(bursts(size, 400)).burstiness <= high


@pytest.mark.parametrize(
    "periods",
    [
        [],
        [40],
        [40] * 50,  # perfectly regular
        [40 + number for number in range(200)],  # a slow change
        ([150] * 7 + [0] * 20) * 5,  # on and off
    ],
)
def test_regular_arrivals_and_rate_changes_are_no_bursts(periods: list[int]) -> None:
    assert after(periods).burstiness <= 1.0


@pytest.mark.parametrize(("periods", "burstiness"), [([40], 1.0), ([40] * 400, 0.1), ([7, 8] * 200, 0.1)])
def test_regular_arrivals_lower_the_dispersion_index(periods: list[int], burstiness: float) -> None:
    assert after(periods).burstiness == pytest.approx(burstiness, abs=0.01)


def test_observation_within_period_or_after_gap_is_ignored() -> None:
    counts = after([40, 60, 40])
    assert counts.burstiness > 1
    assert updated(counts, 70, 180.0 + 89.0) == counts
    assert updated(counts, 70, 180.0 + 90.0).burstiness > counts.burstiness
    gap = updated(counts, 70, 180.0 + 180.0)
    assert (gap.burstiness, gap.last) == (counts.burstiness, 70)


def test_periods_of_rare_decisions_are_compared() -> None:
    rare, counts = Scaling(look_back_period_s=90, interval_s=300), DispersionIndex()
    for number, recent in enumerate([40, 60] * 20):
        queue = Queue(0, 0, arrivals_short_window=recent, uptime_s=1e6)
        counts = counts.updated(queue, rare, 300.0 * number)
    assert counts.burstiness > 2


def test_short_uptime_gives_no_estimate() -> None:
    assert updated(DispersionIndex(), 20, 0.0, uptime_s=60.0) == DispersionIndex()


def test_state_moves_to_another_clock() -> None:
    counts = after([40, 60])
    assert counts.shifted(-90.0).at == 0.0
    assert counts.shifted(-90.0).shifted(90.0) == counts
    assert DispersionIndex().shifted(5.0) == DispersionIndex()
