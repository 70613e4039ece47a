"""Reference autoscalers: formulas worked out by hand, by observation and desired number of workers."""

from __future__ import annotations

import pytest

from controller.simulator.agents import ReferenceAutoscaler, SimObservation
from controller.simulator.reference import BASELINES, FixedWorkers, Hpa, Kpa, LightningAutoscaler, RayServe
from controller.types import WorkerLimits

LIMITS = WorkerLimits(1, 20, 600, 60, 10)
ZERO = WorkerLimits(0, 20, 600, 60, 10)


def seen(
    total_result: int, ready: int, starting: int = 0, *, queued: int | None = None, limits: WorkerLimits = LIMITS
) -> SimObservation:
    waiting = max(total_result - ready, 0) if queued is None else queued
    return SimObservation(waiting, total_result - waiting, ready, starting, limits)


def desired_numbers(autoscaler: ReferenceAutoscaler, observations: list[SimObservation]) -> list[int]:
    """Return the desired numbers, one per interval."""
    return [autoscaler.desired(look, number * autoscaler.interval_s) for number, look in enumerate(observations)]


# ---- Ray Serve: requests / target, with a delay


def test_ray_waits_for_its_delay_before_it_adds() -> None:
    assert desired_numbers(RayServe(), [seen(8, 1)] * 32) == [1] * 30 + [4] * 2


def test_ray_averages_over_look_back_period() -> None:
    ray = RayServe(look_back_period_s=4, upscale_delay_s=0)
    # The mean of the last four samples is 0, 0, 0, 2, 4, ...: it rises by a quarter of the step of 8 each time.
    assert desired_numbers(ray, [seen(0, 1)] * 3 + [seen(8, 1)] * 4) == [1, 1, 1, 1, 2, 3, 4]


def test_ray_removes_after_ten_minutes_only() -> None:
    ray = RayServe(look_back_period_s=1)
    assert set(desired_numbers(ray, [seen(2, 4)] * 600)) == {4}
    assert ray.desired(seen(2, 4), 601.0) == 1


def test_ray_scales_from_zero_at_once_and_to_zero_via_one() -> None:
    assert RayServe().desired(seen(1, 0, limits=ZERO), 0.0) == 1
    ray = RayServe(look_back_period_s=1, downscale_delay_s=0)
    assert desired_numbers(ray, [seen(0, 3, limits=ZERO), seen(0, 1, limits=ZERO)]) == [1, 0]


def test_ray_moves_by_its_factors() -> None:
    assert RayServe(upscaling_factor=0.5, upscale_delay_s=0).desired(seen(20, 2), 0.0) == 6
    assert RayServe(downscaling_factor=0.5, downscale_delay_s=0).desired(seen(2, 3), 0.0) == 2


# ---- Knative


def test_kpa_target_is_seventy_percent_concurrency() -> None:
    kpa = Kpa(container_concurrency=4)
    # 14 requests / 2.8 = 5; the five pods of the last decision are ready by now, so it does not panic.
    assert kpa.desired(seen(14, 5), 0.0) == 5


def test_kpa_panic_mode_starts_and_never_scales_down() -> None:
    kpa = Kpa()
    assert kpa.desired(seen(7, 2), 0.0) == 10
    quiet = [kpa.desired(seen(0, 10), 2.0 * tick) for tick in range(1, 30)]
    assert set(quiet) == {10}, "for the whole stable window"
    assert kpa.desired(seen(0, 10), 70.0) == 5, "then by half of the pods at most"


# ---- Kubernetes and KEDA


@pytest.mark.parametrize(
    ("total_result", "replicas", "wanted"),
    [
        (4, 4, 4),
        (19, 18, 18),  # within the tolerance of 10 % nothing changes
        (43, 18, 20),
        (12, 10, 12),
        (9, 10, 10),  # scale-down only after five minutes
        (20, 2, 6),  # scale-up by four pods or 100 %
        (20, 6, 12),
    ],
)
def test_hpa(total_result: int, replicas: int, wanted: int) -> None:
    assert Hpa(target=1).desired(seen(total_result, replicas), 0.0) == wanted


def test_hpa_keeps_maximum_of_five_minutes() -> None:
    hpa = Hpa(target=1)
    assert hpa.desired(seen(8, 4), 0.0) == 8
    assert hpa.desired(seen(2, 8), 300.0) == 8
    assert hpa.desired(seen(2, 8), 316.0) == 2


def test_hpa_counts_starting_workers() -> None:
    assert Hpa(target=1).desired(seen(8, 2, 6), 0.0) == 8


def test_keda_counts_queued_requests_only() -> None:
    keda = BASELINES["keda"](1, 20)
    assert keda.desired(seen(22, 2, queued=20), 0.0) == 4
    assert keda.desired(seen(10, 10, queued=0), 1000.0) == 1, "no queue: the least, though ten are at work"


# ---- the Lightning autoscaler


@pytest.mark.parametrize(
    ("total_result", "ready", "starting", "wanted"),
    [
        (8, 2, 0, 3),
        (7, 2, 0, 2),
        (1, 2, 0, 1),
        (2, 2, 0, 2),
        (8, 1, 1, 2),  # 8 / (2 + 1) is below 4: the starting worker counts twice
        (80, 20, 0, 20),
        (0, 1, 0, 1),
    ],
)
def test_seed(total_result: int, ready: int, starting: int, wanted: int) -> None:
    assert LightningAutoscaler(max_batch_size=4).desired(seen(total_result, ready, starting), 0.0) == wanted


def test_seed_without_the_double_count() -> None:
    assert LightningAutoscaler(max_batch_size=4, counts_twice=False).desired(seen(8, 1, 1), 0.0) == 3


def test_static() -> None:
    assert FixedWorkers(7).desired(seen(0, 7), 0.0) == 7
    assert FixedWorkers(70).desired(seen(0, 7), 0.0) == 20


@pytest.mark.parametrize("name", BASELINES)
def test_decisions_stay_in_bounds(name: str) -> None:
    autoscaler = BASELINES[name](4, 20)
    for tick, total_result in enumerate([0, 1, 500, 3, 80, 0, 0, 0]):
        assert 1 <= autoscaler.desired(seen(total_result, 1 + tick), tick * 400.0) <= 20
