"""What metrics and traces cost that are off: the balancer without them, and how it is compared."""

from __future__ import annotations

import pytest

from loadbalancer.api.request_recorder import RequestRecorder
from loadbalancer.context.request_context import RequestContext
from loadbalancer.metrics.access_log import AccessLog
from loadbalancer.metrics.requests import RouteMetrics
from loadbalancer.scheduling.histogram import Histogram
from loadbalancer.scheduling.waiting_times import WaitingTimes
from scripts.bench.serving.observability import OFF, UNOBSERVED, Sample, cost_of_off
from scripts.bench.serving.paired_observability import median_interval, ratios, summary
from scripts.bench.serving.switched_balancer import Window, metrics_switch, recorder_switch
from scripts.bench.serving.unobserved_balancer import OBSERVERS, hooks


@pytest.mark.parametrize(("observer", "prefixes"), OBSERVERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_observer_has_hooks(observer: type, prefixes: tuple[str, ...]) -> None:
    assert hooks(observer, prefixes)


def test_an_observer_without_hooks_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="Sample has no method that begins with on_"):
        hooks(Sample, ("on_",))


def test_cost_is_the_median_of_ratios_within_a_round() -> None:
    rounds = [
        {OFF: Sample(rate, cpu, 0), UNOBSERVED: Sample(100.0, 100.0, 0)}
        for rate, cpu in ((98.0, 103.0), (97.0, 102.0), (50.0, 200.0))
    ]
    assert cost_of_off(rounds) == pytest.approx((3.0, 3.0))


def windows(*costs: tuple[bool, float], requests: int = 100) -> list[Window]:
    """Windows in which a request takes so many seconds in the event loop, and twice as many in the process."""
    return [Window(on, requests, requests * cost, 2 * requests * cost) for on, cost in costs]


def test_pairs_are_compared_in_either_order() -> None:
    pairs = windows((True, 3.0), (False, 2.0), (False, 4.0), (True, 6.0))
    assert ratios(pairs) == pytest.approx([1.5, 1.5])
    assert ratios(pairs, of_process=True) == pytest.approx([1.5, 1.5])


def test_windows_without_load_are_left_out() -> None:
    pairs = windows((True, 3.0), (False, 2.0)) + windows((True, 3.0), (False, 1.0), requests=0)
    found = summary(pairs)
    assert found["pairs"] == 1
    assert found["loop_cost_percent"] == pytest.approx({"median": 50.0, "from": 50.0, "to": 50.0})
    assert (found["loop_us_on"], found["loop_us_off"]) == pytest.approx((3e6, 2e6))


def test_interval_holds_the_median_and_leaves_out_outliers() -> None:
    middle, low, high = median_interval([1.0 + number / 1000 for number in range(100)] + [9.0])
    assert low < middle < high < 1.1
    assert median_interval([1.0, 2.0, 3.0])[0] == 2.0


def test_hooks_of_metrics_come_back() -> None:
    real = vars(Histogram)["__init__"]
    turn, histogram, route, waits = metrics_switch(), Histogram((1,)), RouteMetrics(), WaitingTimes(1.0)
    try:
        turn(False)
        for each in (histogram, waits):
            each.observe(0.5)
        route.record(200, 0.5)
        assert (histogram.coarser((1,)).count, waits.count, route.counts) == (0, 1, {})
    finally:
        turn(True)
    histogram.observe(0.5)
    route.record(200, 0.5)
    assert (histogram.sum, route.counts, vars(Histogram)["__init__"]) == (0.5, {200: 1}, real)


def test_recorders_are_switched_with_their_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestRecorder, "__init__", vars(RequestRecorder)["__init__"])  # it is put back
    turn = recorder_switch()
    recorder = RequestRecorder(None, AccessLog(as_json=True))
    context = RequestContext("r")
    try:
        turn(False)
        context.on_error("left")
        assert (recorder.is_on, context.error_code) == (False, "")
    finally:
        turn(True)
    context.on_error("left")
    assert (recorder.is_on, context.error_code) == (True, "left")
