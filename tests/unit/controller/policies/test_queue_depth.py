"""Policy `queue_depth`: thresholds, holds, cooldowns, and known errors of the Lightning autoscaler."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.scaling import Scaling
from controller.policies.queue_depth import QueueDepthMemory, decide, thresholds
from controller.types import Decision, Observation, Queue, Replica, Stage, WorkerLimits
from host.types import WorkerProcess

LIMITS = WorkerLimits(min_workers=1, max_workers=8, start_timeout_s=60, drain_timeout_s=60, lost_after_s=10)
SCALING = Scaling(
    policy="queue_depth",
    scale_up_at=12,
    scale_down_at=3,
    scale_up_hold_s=0,
    scale_down_hold_s=60,
    scale_up_cooldown_s=0,
    scale_down_cooldown_s=60,
)


def observe(queue: Queue | None, ready: int, starting: int = 0, draining: int = 0) -> Observation:
    stages = [Stage.READY] * ready + [Stage.STARTING] * starting + [Stage.DRAINING] * draining
    replicas = [Replica(WorkerProcess(f"w{i}", "m", f"sim:{i}", i, 0.0), stage) for i, stage in enumerate(stages)]
    return Observation("m", queue, replicas)


@pytest.mark.parametrize(
    ("queued", "running", "ready", "starting", "draining", "desired", "reason"),
    [
        (0, 12, 1, 0, 0, 2, "load 12.0 (0 queued + 12 running / 1 worker) has been >= 12 for 0 s"),
        (11, 0, 1, 0, 0, 1, "is between 3 and 12"),
        (100, 12, 1, 0, 0, 2, "load 112.0"),
        # A starting worker counts once as capacity.
        (12, 0, 1, 1, 0, 2, "load 6.0"),
        (24, 0, 1, 1, 0, 3, "load 12.0"),
        # A draining worker is no capacity.
        (12, 0, 1, 0, 3, 2, "load 12.0"),
        (0, 0, 0, 0, 0, 1, "min_workers is 1"),
        (0, 0, 0, 0, 2, 1, "min_workers is 1"),
        (0, 0, 9, 0, 0, 8, "max_workers is 8"),
        (999, 0, 8, 0, 0, 8, "but max_workers is 8"),
        (0, 0, 1, 0, 0, 1, "but min_workers is 1"),
        (0, 0, 2, 0, 0, 2, "for 0 of 60 s"),
    ],
)
def test_single_decision(
    queued: int, running: int, ready: int, starting: int, draining: int, desired: int, reason: str
) -> None:
    decision, _ = decide(
        observe(Queue(queued, running), ready, starting, draining), SCALING, LIMITS, QueueDepthMemory(), 0.0
    )
    assert (decision.desired, decision.valid) == (desired, True)
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("min_workers", "minimum", "ready", "reason"),
    [
        (3, 3, 3, "has been < 3, but min_workers is 3"),
        (0, 1, 1, "has been < 3, but the minimum now is 1"),  # with scale to zero
        (1, 3, 3, "has been < 3, but the minimum now is 3"),  # by a schedule
        (1, 3, 2, "the minimum now is 3"),
    ],
)
def test_reason_names_min_workers_only_if_it_is_the_bound(
    min_workers: int, minimum: int, ready: int, reason: str
) -> None:
    scaling = SCALING.model_copy(update={"min_workers": min_workers})
    decision, _ = decide(observe(Queue(0, 0), ready), scaling, replace(LIMITS, min_workers=minimum), None, 0.0)
    assert (decision.desired, decision.reason[-len(reason) :]) == (3 if minimum == 3 else 1, reason)


def test_missing_data_is_an_invalid_decision() -> None:
    _, memory = decide(observe(Queue(0, 0), 2), SCALING, LIMITS, QueueDepthMemory(), 0.0)
    no_data, memory = decide(observe(None, 2), SCALING, LIMITS, memory, 30.0)
    assert no_data == Decision(2, "no data", valid=False)
    decision, _ = decide(observe(Queue(0, 0), 2), SCALING, LIMITS, memory, 61.0)
    assert decision.desired == 2
    floor, _ = decide(observe(None, 0), SCALING, LIMITS, memory, 30.0)
    assert (floor.desired, floor.valid) == (1, True), "the least that is configured needs no data"


@pytest.mark.parametrize(
    ("queued", "ready", "owed", "desired"),
    [
        # A crashed worker whose replacement waits for the back-off counts as capacity.
        (10, 1, 1, 2),
        (10, 0, 3, 3),
        # It counts once, before and after the start of its replacement.
        (12, 1, 1, 2),
        (24, 1, 1, 3),
    ],
)
def test_pending_replacements_count_as_capacity(queued: int, ready: int, owed: int, desired: int) -> None:
    observation = replace(observe(Queue(queued, 0), ready), owed=owed)
    decision, _ = decide(observation, SCALING, LIMITS, QueueDepthMemory(), 0.0)
    assert decision.desired == desired


@pytest.mark.parametrize("meanwhile", [observe(None, 1), observe(Queue(50, 0), 0), observe(Queue(50, 0), 9)])
def test_missing_data_or_new_size_restarts_the_hold(meanwhile: Observation) -> None:
    settings = SCALING.model_copy(update={"scale_up_hold_s": 60.0})
    _, memory = decide(observe(Queue(20, 0), 1), settings, LIMITS, QueueDepthMemory(), 0.0)
    _, memory = decide(meanwhile, settings, LIMITS, memory, 30.0)
    decision, memory = decide(observe(Queue(20, 0), 1), settings, LIMITS, memory, 60.0)
    assert decision.desired == 1
    assert decide(observe(Queue(20, 0), 1), settings, LIMITS, memory, 120.0)[0].desired == 2


def test_each_direction_has_its_own_cooldown() -> None:
    slow = SCALING.model_copy(
        update={"scale_up_cooldown_s": 100.0, "scale_down_hold_s": 0.0, "scale_down_cooldown_s": 200.0}
    )
    found = changes(slow, 10.0, 900.0, {0.0: 1000, 290.0: 0})
    assert found[:4] == [(0.0, 1), (0.0, 2), (100.0, 3), (200.0, 4)]
    # The last change was at 200 s, so the first removal is at 400 s; the scale-up cooldown does not matter.
    assert found[4:] == [(400.0, 3), (600.0, 2), (800.0, 1)]


def test_removal_that_would_overload_the_rest_is_not_made() -> None:
    narrow = SCALING.model_copy(update={"scale_up_at": 4.0, "scale_down_at": 3.0, "scale_down_hold_s": 0.0})
    decision, _ = decide(observe(Queue(0, 5), 2), narrow, LIMITS, QueueDepthMemory(), 0.0)
    assert decision.desired == 2
    assert "with one worker less it would be 5.0" in decision.reason


@dataclass
class Simulation:
    """A simulation in which workers start and stop at once."""

    scaling: Scaling
    workers: int = 1
    memory: QueueDepthMemory = QueueDepthMemory()  # noqa: RUF009 - frozen

    def tick(self, now: float, tasks: int) -> int:
        decision, self.memory = decide(observe(Queue(tasks, 0), self.workers), self.scaling, LIMITS, self.memory, now)
        self.workers = decision.desired
        return self.workers


def changes(scaling: Scaling, interval_s: float, until_s: float, load: dict[float, int]) -> list[tuple[float, int]]:
    """Return the times and values of the changes; `load` maps times to the number of tasks from then on."""
    simulation, changed, ticks = Simulation(scaling), [(0.0, 1)], int(until_s / interval_s)
    for tick in range(ticks + 1):
        now = tick * interval_s
        tasks = load[max(start for start in load if start <= now)]
        if simulation.tick(now, tasks) != changed[-1][1]:
            changed.append((now, simulation.workers))
    return changed


def test_times_do_not_depend_on_the_tick_interval() -> None:
    settings = SCALING.model_copy(update={"scale_up_hold_s": 60.0, "scale_up_cooldown_s": 60.0})
    load = {0.0: 0, 60.0: 20, 240.0: 4}
    fast, slow = changes(settings, 5.0, 900.0, load), changes(settings, 30.0, 900.0, load)
    assert fast == slow == [(0.0, 1), (120.0, 2), (300.0, 1)]


def test_each_direction_has_its_own_hold() -> None:
    found = changes(SCALING, 30.0, 600.0, {0.0: 100, 150.0: 0})
    assert found[:6] == [(0.0, 1), (0.0, 2), (30.0, 3), (60.0, 4), (90.0, 5), (120.0, 6)]
    # The last addition was at 120 s; the load is low from 150 s; each removal needs a hold of 60 s.
    assert found[6:] == [(210.0, 5), (300.0, 4), (390.0, 3), (480.0, 2), (570.0, 1)]


def test_burst_shorter_than_hold_changes_nothing() -> None:
    settings = SCALING.model_copy(update={"scale_up_hold_s": 60.0})
    assert changes(settings, 30.0, 300.0, {0.0: 5, 30.0: 50, 60.0: 5}) == [(0.0, 1)]


@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.one_of(st.none(), st.integers(0, 500))), max_size=60),
    st.integers(1, 3),
    st.integers(3, 8),
)
def test_any_history_keeps_bounds_and_steps_of_one(
    history: list[tuple[float, int | None]], min_workers: int, max_workers: int
) -> None:
    limits = WorkerLimits(min_workers, max_workers, 60, 60, 10)
    workers, memory, now = min_workers, QueueDepthMemory(), 0.0
    for seconds, tasks in history:
        now += seconds
        queue = None if tasks is None else Queue(tasks, 0)
        decision, memory = decide(observe(queue, workers), SCALING, limits, memory, now)
        assert min_workers <= decision.desired <= max_workers
        assert abs(decision.desired - workers) <= 1
        assert decision.valid == (tasks is not None)
        assert decision.reason
        workers = decision.desired


@pytest.mark.parametrize(
    ("up", "down", "cap", "expected"),
    [
        (12, 3, 99, (12, 3)),
        ("auto", "auto", None, (12, 3)),
        ("auto", "auto", 24, (24, 6)),
        ("auto", "auto", 1, (1, 0.25)),
        ("auto", 3, 24, (24, 3)),
        ("auto", 3, 2, (2, 1)),  # the thresholds stay apart for any batch
        (8, "auto", 24, (8, 2)),
    ],
)
def test_auto_thresholds_follow_the_measured_batch(
    up: float | Literal["auto"], down: float | Literal["auto"], cap: int | None, expected: tuple[float, float]
) -> None:
    assert thresholds(Scaling(policy="queue_depth", scale_up_at=up, scale_down_at=down), cap) == expected
    decision, _ = decide(
        observe(Queue(int(expected[0]), 0, cap), 1),
        Scaling(policy="queue_depth", scale_up_at=up),
        LIMITS,
        QueueDepthMemory(),
        0.0,
    )
    assert decision.desired == 2
