"""Decisions before the interval is over: their reasons, and their bounded rate."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler
from controller.autoscaler.model_state import ModelState
from controller.autoscaler.triggers import MIN_TRIGGER_INTERVAL_S, early_trigger
from controller.policies import POLICIES
from controller.types import Decision, Observation, Queue, Replica, Stage, WorkerLimits
from host.types import WorkerProcess

LIMITS = WorkerLimits(min_workers=0, max_workers=8, start_timeout_s=60, drain_timeout_s=60, lost_after_s=10)
SCALING = Scaling(interval_s=30, min_workers=0, slo={"max_wait_s": 10}, drain_s=20, look_back_period_s=90)


def seen(queue: Queue | None, ready: int, starting: int = 0, owed: int = 0) -> Observation:
    stages = [Stage.READY] * ready + [Stage.STARTING] * starting
    replicas = [Replica(WorkerProcess(f"w{i}", "m", f"sim:{i}", i, 0.0), stage) for i, stage in enumerate(stages)]
    return Observation("m", queue, replicas, owed, cold_start_s=40.0)


def queue(queued: int, work_s: float | None, oldest_wait_s: float = 0.0, **more: Any) -> Queue:
    return Queue(queued, 0, 1, 1.0, work_s, 4.0, oldest_wait_s=oldest_wait_s, uptime_s=1000.0, **more)


@pytest.mark.parametrize(
    ("observation", "desired", "decided_at", "now", "trigger"),
    [
        (seen(None, 1), 1, 0.0, 29.9, ""),
        (seen(queue(0, 0.0), 1), 1, 0.0, 10.0, ""),
        # The first request of a model with zero workers, even right after a decision.
        (seen(queue(1, 4.0), 0), 0, 9.9, 10.0, "first request"),
        (seen(queue(1, None), 0), 0, 9.9, 10.0, "first request"),
        (seen(queue(0, 0.0), 0), 0, 0.0, 10.0, ""),
        # After the decision the plan starts the worker, even if the start must wait.
        (seen(queue(1, 4.0), 0), 1, 10.0, 10.1, ""),
        # One worker does 60 s of work until 20 s after one more could have started.
        (seen(queue(20, 61.0), 1), 1, 0.0, 10.0, "backlog"),
        (seen(queue(20, 60.0), 1), 1, 0.0, 10.0, ""),
        # Enough workers are decided already, started or not.
        (seen(queue(20, 61.0), 1), 2, 0.0, 10.0, ""),
        (seen(queue(20, 61.0), 1, 1), 2, 0.0, 10.0, ""),
        (seen(queue(20, 61.0), 1, owed=1), 1, 0.0, 10.0, ""),
        # No task is late.
        (seen(queue(1, 9.0, arrivals_short_window=90), 1), 1, 0.0, 10.0, ""),
        (seen(queue(1, 9.0, 10.1, arrivals_short_window=90), 1), 1, 0.0, 10.0, "backlog"),
        # A lasting overload triggers only after the minimum interval.
        (seen(queue(20, 61.0), 1), 1, 10.0, 10.0 + MIN_TRIGGER_INTERVAL_S - 0.1, ""),
        (seen(queue(20, 61.0), 1), 1, 10.0, 10.0 + MIN_TRIGGER_INTERVAL_S, "backlog"),
        # The number is at its maximum.
        (seen(queue(900, 9999.0, 99.0), 8), 8, 0.0, 10.0, ""),
        # The work is unknown.
        (seen(queue(900, None, 99.0), 1), 1, 0.0, 10.0, ""),
    ],
)
def test_trigger_of_a_decision(
    observation: Observation, desired: int, decided_at: float, now: float, trigger: str
) -> None:
    assert early_trigger(observation, SCALING, LIMITS, Decision(desired, "last"), decided_at, now) == trigger


def test_each_interval_has_a_decision() -> None:
    model = ModelState(SCALING, LIMITS, POLICIES["slo_work"], ["sim:0"], Decision(1, "first"))
    autoscaler = Autoscaler({"m": model})
    found = {now: autoscaler.tick({"m": seen(None, 1)}, now).decided for now in (0.0, 29.9, 30.0, 31.0)}
    assert {now: [event.trigger for event in events] for now, events in found.items()} == {
        0.0: ["tick"],
        29.9: [],
        30.0: ["tick"],
        31.0: [],
    }


@given(
    st.lists(
        st.tuples(
            st.floats(0.2, 40),
            st.one_of(st.none(), st.tuples(st.integers(0, 300), st.floats(0, 90))),
            st.integers(0, 8),
        ),
        min_size=1,
        max_size=80,
    ),
    st.floats(1, 60),
    st.integers(0, 8),
)
def test_early_decisions_come_at_a_bounded_rate(
    observations: list[tuple[float, tuple[int, float] | None, int]], interval_s: float, desired: int
) -> None:
    """Check the trigger for any observation and decision."""
    scaling = SCALING.model_copy(update={"interval_s": interval_s})
    decided_at, now = 0.0, 0.0
    for seconds, waiting, ready in observations:
        now += seconds
        tasks = (
            None
            if waiting is None
            else queue(waiting[0], 4.0 * waiting[0], waiting[1], arrivals_short_window=waiting[0])
        )
        decision = Decision(desired, "last")
        if now >= decided_at + interval_s:
            decided_at = now
            continue
        trigger = early_trigger(seen(tasks, ready), scaling, LIMITS, decision, decided_at, now)
        if trigger == "backlog":
            assert now - decided_at >= MIN_TRIGGER_INTERVAL_S
            assert decision.desired < LIMITS.max_workers
        if trigger == "first request":
            assert decision.desired == 0
            desired = 1  # as `bounds.decide` ensures
        if trigger:
            decided_at = now
            desired = min(max(desired, 1) + 1, 8) if trigger == "backlog" else desired
