"""State that survives a restart of the controller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler
from controller.autoscaler.model_state import ModelState, RecentStarts
from controller.policies import POLICIES, bounds, ongoing_requests, queue_depth, slo_work
from controller.types import Decision, Observation, Queue, Replica, Stage, WorkerLimits
from host.types import WorkerProcess

LIMITS = WorkerLimits(min_workers=1, max_workers=8, start_timeout_s=60, drain_timeout_s=60, lost_after_s=10)
SLOTS = [f"sim:{n}" for n in range(8)]


def make_autoscaler(policy: str = "slo_work", **memory: Any) -> Autoscaler:
    model = ModelState(Scaling(policy=policy), LIMITS, POLICIES[policy], SLOTS, Decision(1, "first"))
    model.memory = replace(model.memory, **memory)
    return Autoscaler({"m": model})


def observe(queue: Queue | None, ready: int = 2) -> Observation:
    replicas = [Replica(WorkerProcess(f"w{i}", "m", f"sim:{i}", i, 0.0), Stage.READY) for i in range(ready)]
    return Observation("m", queue, replicas)


@pytest.mark.parametrize(
    ("policy", "own", "after"),
    [
        (
            "slo_work",
            slo_work.SloWorkMemory(2.5, 100, 7, 900, True, False, (slo_work.PastDecision(990.0, 2, 3, 3),)),
            slo_work.SloWorkMemory(2.5, 100, 7, 900, True, False, (slo_work.PastDecision(-30.0, 2, 3, 3),)),
        ),
        # The holds restart, because the load may have changed; the time of the last change stays valid.
        (
            "queue_depth",
            queue_depth.QueueDepthMemory(1.0, 2.0, 980.0, 990.0),
            queue_depth.QueueDepthMemory(None, None, -40.0, -30.0),
        ),
        ("ongoing_requests", ongoing_requests.OngoingRequestsMemory((), 1.0), ongoing_requests.OngoingRequestsMemory()),
        ("static", None, None),
    ],
)
def test_state_survives_a_restart(policy: str, own: object, after: object) -> None:
    old = make_autoscaler(policy, own=own, idle_since=970.0, dispatched=9)
    old.models["m"].starts = RecentStarts((30.0, 41.5), (2.0,))
    old.tick({"m": observe(None)}, 1000.0)
    old.models["m"].memory = replace(old.models["m"].memory, own=own, idle_since=970.0)

    new = make_autoscaler(policy)
    new.restore(old.dump_state(), now=5.0, age_s=25.0)
    assert new.models["m"].memory == bounds.PolicyMemory(after, idle_since=-50.0, dispatched=9)
    assert new.models["m"].starts == RecentStarts((30.0, 41.5), (2.0,))


@pytest.mark.parametrize(
    "saved",
    [
        b"",
        b"null",
        b"[]",
        b'{"m": 3}',
        b'{"m": {"policy": "slo_work", "desired": 2}}',
        b'{"m": {"policy": "slo_work", "starts": {}, "memory": {"own": {"z_offset": "high"}}}}',
        b'{"other": {"policy": "slo_work", "starts": {}, "memory": {"own": {"z_offset": 3}}}}',
        b'{"m": {"policy": "queue_depth", "starts": {}, "memory": {"own": {"last_up": 3}}}}',
        b'{"m": {"policy": "slo_work", "starts": {}, "memory": {"recurring": {"cycles": [{}]}}}}',
        b'{"m": {"policy": "own.module:scale", "starts": {}, "memory": {"own": {"what": "ever"}}}}',
    ],
)
def test_unreadable_or_foreign_state_is_ignored(saved: bytes) -> None:
    new = make_autoscaler()
    new.restore(saved, now=5.0)
    assert (new.models["m"].memory.own, new.models["m"].memory.recurring) == (None, None)
    assert new.tick({"m": observe(Queue(0, 0))}, 6.0).decided[0].decision.valid


def test_existing_workers_are_kept_until_first_decision() -> None:
    """While the balancer does not answer, adopted workers must not be drained."""
    new = make_autoscaler()
    result = new.tick({"m": observe(None, ready=5)}, 0.0)
    assert not result.decided[0].decision.valid
    assert result.plan.actions == []
    assert new.models["m"].decision.desired == 5


def failing(
    observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: object, now: float
) -> tuple[Decision, object]:
    raise ValueError("too much")


def test_failing_policy_is_an_invalid_decision() -> None:
    failed = Autoscaler({"m": ModelState(Scaling(policy="my.own:scale"), LIMITS, failing, SLOTS, Decision(2, "first"))})
    result = failed.tick({"m": observe(Queue(50, 0))}, 0.0)
    assert result.plan.actions == []
    decided = result.decided[0]
    assert not decided.decision.valid
    assert "ValueError: too much" in decided.decision.reason
    assert "in failing" in decided.failure


@pytest.mark.parametrize(("least", "ready", "queued", "desired"), [(0, 0, 3, 1), (0, 0, 0, 0), (2, 1, 0, 2)])
def test_bounds_hold_while_the_policy_fails(least: int, ready: int, queued: int, desired: int) -> None:
    scaling, limits = Scaling(policy="my.own:scale", min_workers=least), replace(LIMITS, min_workers=least)
    failed = Autoscaler({"m": ModelState(scaling, limits, failing, SLOTS, Decision(0, "first"))})
    queue = Queue(queued, 0, uptime_s=900.0)
    [decided] = failed.tick({"m": observe(queue, ready)}, 0.0).decided
    assert failed.models["m"].decision.desired == desired
    assert (decided.failure != "") == bool(queued or least), "an idle model without workers needs no policy"
    assert failed.tick({"m": observe(queue, ready)}, 1.0).decided == [], "it is not called again before the interval"
