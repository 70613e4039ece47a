"""What metrics and traces cost that are off: the balancer without them, and how it is compared."""

from __future__ import annotations

import pytest

from scripts.bench.serving.observability import OFF, UNOBSERVED, Sample, cost_of_off
from scripts.bench.serving.unobserved_balancer import _OBSERVERS, hooks


@pytest.mark.parametrize(("observer", "prefix"), _OBSERVERS, ids=lambda value: getattr(value, "__name__", value))
def test_every_observer_has_hooks(observer: type, prefix: str) -> None:
    assert hooks(observer, prefix)


def test_an_observer_without_hooks_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="Sample has no method that begins with on_"):
        hooks(Sample, "on_")


def test_cost_is_the_median_of_ratios_within_a_round() -> None:
    rounds = [
        {OFF: Sample(rate, cpu, 0), UNOBSERVED: Sample(100.0, 100.0, 0)}
        for rate, cpu in ((98.0, 103.0), (97.0, 102.0), (50.0, 200.0))
    ]
    assert cost_of_off(rounds) == pytest.approx((3.0, 3.0))
