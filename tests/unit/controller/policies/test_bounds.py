"""Rules around every policy: bounds, schedules as a minimum, scale to zero and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from configs.scaling import Scaling
from controller.policies import POLICIES, bounds, static
from controller.policies.bounds import PolicyMemory
from controller.types import Decision, Observation, Queue, Replica, Stage, WorkerLimits
from host.types import WorkerProcess

LIMITS = WorkerLimits(min_workers=1, max_workers=8, start_timeout_s=60, drain_timeout_s=60, lost_after_s=10)
ZERO = replace(LIMITS, min_workers=0)
NINE = 9 * 3600.0  # nine o'clock on the first of January 1970
IDLE = Queue(0, 0, mean_work_s=4.0, uptime_s=5000.0)


def observe(queue: Queue | None, ready: int, starting: int = 0, unix_s: float | None = None) -> Observation:
    stages = [Stage.READY] * ready + [Stage.STARTING] * starting
    replicas = [Replica(WorkerProcess(f"w{i}", "m", f"sim:{i}", i, 0.0), stage) for i, stage in enumerate(stages)]
    return Observation("m", queue, replicas, cold_start_s=40.0, unix_s=unix_s)


def scaling(**given: Any) -> Scaling:
    return Scaling.model_validate(given)


class Fixed:
    """A policy with a constant decision."""

    def __init__(self, desired: int, *, valid: bool = True) -> None:
        self.decision = Decision(desired, "fixed", valid)

    def __call__(
        self, observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: None, now: float
    ) -> tuple[Decision, None]:
        return self.decision, None


@pytest.mark.parametrize(
    ("policy_desired", "limits", "desired"),
    [(-3, LIMITS, 1), (99, LIMITS, 8), (4, LIMITS, 4), (0, replace(LIMITS, min_workers=3), 3)],
)
def test_decision_is_clamped_to_bounds(policy_desired: int, limits: WorkerLimits, desired: int) -> None:
    decision, _ = bounds.decide(Fixed(policy_desired), observe(IDLE, 2), scaling(), limits, PolicyMemory(), 0.0)
    assert decision.desired == desired


@pytest.mark.parametrize(
    ("ready", "limits", "desired", "valid"),
    [(2, LIMITS, 2, False), (0, LIMITS, 1, True), (9, LIMITS, 8, True), (0, ZERO, 0, False), (1, ZERO, 1, False)],
)
@pytest.mark.parametrize("policy", ["slo_work", "queue_depth", "ongoing_requests"])
def test_without_data_only_bounds_apply(
    policy: str, ready: int, limits: WorkerLimits, desired: int, valid: bool
) -> None:
    settings = scaling(policy=policy, min_workers=limits.min_workers)
    decision, memory = bounds.decide(POLICIES[policy], observe(None, ready), settings, limits, PolicyMemory(), 0.0)
    assert (decision.desired, decision.valid) == (desired, valid)
    assert memory.idle_since is None


@pytest.mark.parametrize(
    ("workers", "policy_desired", "unix_s", "desired"),
    [
        (4, 1, NINE, 4),
        (4, 6, NINE, 6),
        (4, 1, NINE - 7200, 2),  # seven o'clock: the entry of the evening before is active
        (4, 1, None, 1),  # schedules do not apply without a clock
        (0, 1, NINE, 1),  # min_workers still applies
    ],
)
def test_schedule_is_a_minimum_for_any_policy(
    workers: int, policy_desired: int, unix_s: float | None, desired: int
) -> None:
    entries = [{"cron": "0 8 * * *", "workers": workers}, {"cron": "0 20 * * *", "workers": 2}]
    settings = scaling(schedule=entries, max_workers=8)
    decision, _ = bounds.decide(
        Fixed(policy_desired), observe(IDLE, 1, unix_s=unix_s), settings, LIMITS, PolicyMemory(), 0.0
    )
    assert decision.desired == desired
    if desired > policy_desired:
        assert "schedule" in decision.reason


def test_schedule_below_min_workers_changes_nothing() -> None:
    settings = scaling(min_workers=3, schedule=[{"cron": "0 8 * * *", "workers": 2}])
    limits = replace(LIMITS, min_workers=3)
    decision, _ = bounds.decide(Fixed(1), observe(IDLE, 3, unix_s=NINE), settings, limits, PolicyMemory(), 0.0)
    assert (decision.desired, decision.reason) == (3, "min_workers is 3; the policy wanted 1: fixed")


def test_state_of_the_policy_is_passed_on() -> None:
    def counting(
        observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: int | None, now: float
    ) -> tuple[Decision, int]:
        return Decision(2, "counted"), (memory or 0) + 1

    memory = PolicyMemory()
    for now in (0.0, 30.0, 60.0):
        _, memory = bounds.decide(counting, observe(IDLE, 2), scaling(), LIMITS, memory, now)
    assert memory.own == 3


def test_task_on_another_server_is_work() -> None:
    settings, proxied = scaling(min_workers=0, scale_to_zero={"idle_s": 0}), replace(IDLE, proxied_in_flight=1)
    for ready in (0, 1):
        decision, _ = bounds.decide(Fixed(1), observe(proxied, ready), settings, ZERO, PolicyMemory(), 0.0)
        assert decision.desired == 1


def test_schedule_above_max_workers_is_clamped() -> None:
    settings = scaling(schedule=[{"cron": "0 8 * * *", "workers": 12}])
    decision, _ = bounds.decide(Fixed(1), observe(IDLE, 1, unix_s=NINE), settings, LIMITS, PolicyMemory(), 0.0)
    assert decision.desired == 8


@pytest.mark.parametrize("policy", ["slo_work", "queue_depth", "ongoing_requests", "static"])
def test_last_worker_stops_after_idle_s(policy: str) -> None:
    settings = scaling(policy=policy, min_workers=0, scale_to_zero={"idle_s": 100})
    memory, decided = PolicyMemory(), {}
    for now in (0.0, 30.0, 60.0, 99.0, 100.0):
        decision, memory = bounds.decide(POLICIES[policy], observe(IDLE, 1), settings, ZERO, memory, now)
        decided[now] = decision.desired
    assert decided == {0.0: 1, 30.0: 1, 60.0: 1, 99.0: 1, 100.0: 0}
    # It does not start again.
    decision, _ = bounds.decide(POLICIES[policy], observe(IDLE, 0), settings, ZERO, memory, 130.0)
    assert decision.desired == 0


@pytest.mark.parametrize(
    "meanwhile",
    [
        replace(IDLE, queued=1),
        replace(IDLE, running=1),
        replace(IDLE, proxied_in_flight=1),
        replace(IDLE, started_total=1),  # a task started and ended between two observations
        None,
    ],
)
def test_any_work_restarts_the_idle_period(meanwhile: Queue | None) -> None:
    settings, memory = scaling(min_workers=0, scale_to_zero={"idle_s": 100}), PolicyMemory()
    after = replace(IDLE, started_total=meanwhile.started_total) if meanwhile else IDLE
    decided = []
    for now, queue in ((0.0, IDLE), (60.0, meanwhile), (90.0, after), (120.0, after), (190.0, after)):
        decision, memory = bounds.decide(static.decide, observe(queue, 1), settings, ZERO, memory, now)
        decided.append(decision.desired)
    assert decided == [1, 1, 1, 1, 0]


def test_scale_to_zero_goes_through_one_worker() -> None:
    settings, memory = scaling(min_workers=0, scale_to_zero={"idle_s": 0}), PolicyMemory()
    decision, memory = bounds.decide(Fixed(1), observe(IDLE, 3), settings, ZERO, memory, 0.0)
    assert decision.desired == 1
    decision, _ = bounds.decide(Fixed(1), observe(IDLE, 1), settings, ZERO, memory, 30.0)
    assert decision.desired == 0


@pytest.mark.parametrize("policy", ["slo_work", "queue_depth", "ongoing_requests", "static"])
def test_first_start_says_that_a_request_waits(policy: str) -> None:
    settings, waiting = scaling(policy=policy, min_workers=0), replace(IDLE, queued=1)
    decision, _ = bounds.decide(POLICIES[policy], observe(waiting, 0), settings, ZERO, PolicyMemory(), 0.0)
    assert (decision.desired, decision.reason) == (1, "requests wait and there is no worker: start 1")


def test_policy_schedule_names_its_entry_once() -> None:
    settings = scaling(policy="schedule", schedule=[{"cron": "0 8 * * *", "workers": 3}])
    observed = observe(IDLE, 1, unix_s=NINE)
    decision, _ = bounds.decide(POLICIES["schedule"], observed, settings, LIMITS, PolicyMemory(), 0.0)
    assert (decision.desired, decision.reason) == (3, "schedule '0 8 * * *' requires 3")


def test_schedule_prevents_scale_to_zero() -> None:
    settings = scaling(min_workers=0, scale_to_zero={"idle_s": 0}, schedule=[{"cron": "0 8 * * *", "workers": 2}])
    decision, _ = bounds.decide(Fixed(0), observe(IDLE, 1, unix_s=NINE), settings, ZERO, PolicyMemory(), 0.0)
    assert decision.desired == 2


@pytest.mark.parametrize(
    ("queued", "work_s", "activation", "desired"),
    [
        (1, 4.0, 1, 1),
        (1, 4.0, 3, 3),
        # At most eight workers; drain_s is 20 s.
        (20, 80.0, 1, 4),
        (20, 80.0, 6, 6),
        (200, 800.0, 1, 8),
        # The work is unknown.
        (5, None, 1, 1),
    ],
)
@pytest.mark.parametrize("policy", ["slo_work", "queue_depth", "ongoing_requests", "static"])
def test_first_request_starts_workers_for_its_backlog(
    policy: str, queued: int, work_s: float | None, activation: int, desired: int
) -> None:
    settings = scaling(policy=policy, min_workers=0, scale_to_zero={"activation": activation}, drain_s=20)
    queue = Queue(queued, 0, backlog_work_s=work_s, mean_work_s=None if work_s is None else 4.0, uptime_s=5000.0)
    decision, _ = bounds.decide(POLICIES[policy], observe(queue, 0), settings, ZERO, PolicyMemory(), 0.0)
    assert (decision.desired, decision.valid) == (desired, True)


@pytest.mark.parametrize(("ready", "desired", "valid"), [(2, 4, True), (4, 5, False), (9, 8, True)])
def test_bounds_hold_without_a_valid_decision(ready: int, desired: int, valid: bool) -> None:
    settings = scaling(schedule=[{"cron": "0 8 * * *", "workers": 4}])
    silent = Fixed(5, valid=False)
    decision, _ = bounds.decide(silent, observe(IDLE, ready, unix_s=NINE), settings, LIMITS, PolicyMemory(), 0.0)
    assert (decision.desired, decision.valid) == (desired, valid)


def test_invalid_decision_is_kept_except_from_zero() -> None:
    silent = Fixed(5, valid=False)
    decision, _ = bounds.decide(silent, observe(IDLE, 2), scaling(), LIMITS, PolicyMemory(), 0.0)
    assert not decision.valid
    waiting = replace(IDLE, queued=1, backlog_work_s=4.0)
    decision, _ = bounds.decide(silent, observe(waiting, 0), scaling(min_workers=0), ZERO, PolicyMemory(), 0.0)
    assert (decision.desired, decision.valid) == (1, True)
