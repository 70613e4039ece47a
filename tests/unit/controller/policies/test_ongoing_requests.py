"""Policy `ongoing_requests`: Ray Serve's formula with factors, and delays in seconds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.scaling import Scaling
from controller.policies.ongoing_requests import OngoingRequestsMemory, decide
from controller.types import Observation, Queue, Replica, Stage, WorkerLimits
from host.types import WorkerProcess

LIMITS = WorkerLimits(min_workers=1, max_workers=20, start_timeout_s=60, drain_timeout_s=60, lost_after_s=10)


def observe(tasks: int | None, ready: int, starting: int = 0, draining: int = 0, cap: int | None = None) -> Observation:
    stages = [Stage.READY] * ready + [Stage.STARTING] * starting + [Stage.DRAINING] * draining
    replicas = [Replica(WorkerProcess(f"w{i}", "m", f"sim:{i}", i, 0.0), stage) for i, stage in enumerate(stages)]
    return Observation("m", None if tasks is None else Queue(tasks, 0, cap), replicas)


def scaling(**given: Any) -> Scaling:
    at_once = {"policy": "ongoing_requests", "target_ongoing_requests": 2, "upscale_delay_s": 0, "downscale_delay_s": 0}
    return Scaling.model_validate(at_once | given)


@pytest.mark.parametrize(
    ("tasks", "ready", "starting", "up", "down", "desired"),
    [
        (2, 1, 0, 1, 1, 1),
        (3, 1, 0, 1, 1, 2),
        (40, 1, 0, 1, 1, 20),
        (400, 1, 0, 1, 1, 20),
        # Half of the missing workers, rounded up; half of the surplus.
        (40, 10, 0, 0.5, 1, 15),
        (10, 10, 0, 1, 0.5, 8),
        # A starting worker counts once.
        (6, 1, 2, 1, 1, 3),
        (8, 1, 2, 1, 1, 4),
        # A small factor still removes the last surplus worker.
        (18, 10, 0, 1, 0.1, 9),
        (0, 1, 0, 1, 1, 1),
        # From zero workers at once.
        (1, 0, 0, 1, 1, 1),
        (1, 0, 0, 2.5, 1, 3),
    ],
)
def test_single_decision(tasks: int, ready: int, starting: int, up: float, down: float, desired: int) -> None:
    settings = scaling(upscaling_factor=up, downscaling_factor=down)
    decision, _ = decide(observe(tasks, ready, starting), settings, LIMITS, None, 0.0)
    assert (decision.desired, decision.valid) == (desired, True)
    assert decision.reason


@pytest.mark.parametrize(("cap", "target"), [(None, 0.7), (1, 0.7), (10, 7.0)])
def test_auto_target_follows_the_measured_batch(cap: int | None, target: float) -> None:
    decision, _ = decide(observe(7, 1, cap=cap), scaling(target_ongoing_requests="auto"), LIMITS, None, 0.0)
    assert decision.inputs["target"] == pytest.approx(target)


def test_missing_data_restarts_the_delays() -> None:
    slow = scaling(upscale_delay_s=30)
    _, memory = decide(observe(10, 1), slow, LIMITS, None, 0.0)
    no_data, memory = decide(observe(None, 1), slow, LIMITS, memory, 20.0)
    assert (no_data.desired, no_data.valid) == (1, False)
    assert decide(observe(10, 1), slow, LIMITS, memory, 31.0)[0].desired == 1


def changes(scaling: Scaling, every_s: float, until_s: float, load: dict[float, int]) -> list[tuple[float, int]]:
    """Return the times and values of the changes; workers start and stop at once."""
    workers, memory, changed = 1, None, [(0.0, 1)]
    for tick in range(int(until_s / every_s) + 1):
        now = tick * every_s
        tasks = load[max(start for start in load if start <= now)]
        decision, memory = decide(observe(tasks, workers), scaling, LIMITS, memory, now)
        workers = decision.desired
        if workers != changed[-1][1]:
            changed.append((now, workers))
    return changed


@pytest.mark.parametrize("every_s", [5.0, 10.0, 30.0])
def test_delays_do_not_depend_on_the_tick_interval(every_s: float) -> None:
    slow = scaling(upscale_delay_s=60, downscale_delay_s=120, look_back_period_s=1)
    load = {0.0: 2, 60.0: 8, 300.0: 2}
    assert changes(slow, every_s, 900, load) == [(0.0, 1), (120.0, 4), (420.0, 1)]


def test_threshold_crossing_restarts_the_delay() -> None:
    slow = scaling(upscale_delay_s=60, look_back_period_s=1)
    assert changes(slow, 10, 300, {0.0: 8, 50.0: 2, 60.0: 8, 110.0: 2}) == [(0.0, 1)]


def test_mean_load_restarts_after_a_change() -> None:
    mean = scaling(look_back_period_s=30)
    _, memory = decide(observe(0, 5), scaling(look_back_period_s=30, downscale_delay_s=600), LIMITS, None, 0.0)
    second, memory = decide(observe(40, 5), mean, LIMITS, memory, 10.0)
    assert second.inputs["tasks"] == 20
    assert second.desired == 10
    # The load that led to ten workers does not cause another change.
    third, _ = decide(observe(20, 10), mean, LIMITS, memory, 20.0)
    assert third.desired == 10
    other, _ = decide(observe(26, 10), mean, LIMITS, memory, 20.0)
    assert other.inputs["tasks"] == 26, "the samples from before the change are gone"


@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.one_of(st.none(), st.integers(0, 500))), max_size=60),
    st.integers(0, 3),
    st.integers(3, 8),
    st.floats(0.1, 3),
)
def test_any_history_keeps_number_in_bounds(
    history: list[tuple[float, int | None]], min_workers: int, max_workers: int, factor: float
) -> None:
    limits, workers, memory, now = WorkerLimits(min_workers, max_workers, 60, 60, 10), min_workers, None, 0.0
    settings = scaling(upscaling_factor=factor, downscaling_factor=factor, downscale_delay_s=60)
    for seconds, tasks in history:
        now += seconds
        decision, memory = decide(observe(tasks, workers), settings, limits, memory, now)
        assert min_workers <= decision.desired <= max_workers
        assert decision.valid == (tasks is not None)
        workers = decision.desired


def test_restart_clears_the_state() -> None:
    _, memory = decide(observe(10, 1), scaling(upscale_delay_s=30), LIMITS, None, 0.0)
    assert memory.shifted(100.0) == OngoingRequestsMemory()
