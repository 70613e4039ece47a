"""Standby workers in plans: activations in place of starts, and the number of standby workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from controller.planning.plan import Plan
from controller.planning.scale_down import DRAIN_GRACE_S
from controller.planning.standby import StandbyTarget, as_replica, count_ready, with_standby
from controller.types import (
    Action,
    Activate,
    CrashBackoff,
    Drain,
    Kill,
    Observation,
    Replica,
    Stage,
    Start,
    WorkerLimits,
)
from host.types import WorkerProcess

NOW = 1000.0
LIMITS = WorkerLimits(1, 4, start_timeout_s=60, drain_timeout_s=30, lost_after_s=10)


def spare(name: str, age_s: float = 100.0, *, loaded: bool = True, kind: str = "cuda", **changes: Any) -> WorkerProcess:
    started = NOW - age_s
    return WorkerProcess(name, "m", kind, 1, started, spare=True, loaded_at=started + 10 if loaded else None, **changes)


def worker(stage: Stage) -> Replica:
    return Replica(WorkerProcess("w", "m", "cuda:7", 2, NOW - 5), stage)


def target(
    count: int, spares: Sequence[WorkerProcess], replicas: Sequence[Replica] = (), model: str = "m", **changes: Any
) -> StandbyTarget:
    observation = Observation(model, None, replicas, spares=spares)
    defaults: dict[str, Any] = {"kinds": ["cuda"], "crashes": CrashBackoff(), "worker_crashes": CrashBackoff()}
    return StandbyTarget(observation, count, limits=LIMITS, **defaults | changes)


def plan_actions(actions: Sequence[Action], *models: StandbyTarget) -> list[Action]:
    return list(with_standby(Plan(actions, {}), models, NOW).actions)


START = Start("m", "cuda:0", "why")
SECOND = Start("m", "cuda:1", "why")
MORE = Start("m", "cuda", "0 standby workers, standby is 1", standby=True)


def activation(name: str, start: Start = START) -> Activate:
    return Activate(name, start.model, start.device, start.reason)


@pytest.mark.parametrize(
    ("actions", "own", "expected"),
    [
        # Without standby workers and standby 0 the plan is unchanged.
        ([START], target(0, []), [START]),
        ([], target(1, []), [MORE]),
        ([], target(1, [spare("a")]), []),
        ([], target(3, [spare("a")]), [Start("m", "cuda", "1 standby workers, standby is 3", standby=True)]),
        # One starts at a time.
        ([], target(3, [spare("a", loaded=False, age_s=5)]), []),
        # Workers have priority: no standby worker starts while a worker starts or is activated.
        ([START], target(1, []), [START]),
        ([], target(1, [], [worker(Stage.STARTING)]), []),
        ([Drain("w", "why")], target(1, [], [worker(Stage.STARTING)]), [Drain("w", "why"), MORE]),
        ([], target(1, [], [worker(Stage.READY)]), [MORE]),
        ([], target(1, [], [worker(Stage.DRAINING)]), [MORE]),
        # Starts become activations; the standby workers are replaced later.
        ([START], target(1, [spare("a")]), [activation("a")]),
        ([START], target(2, [spare("a"), spare("b", age_s=200)]), [activation("b")]),
        ([START, SECOND], target(1, [spare("a")]), [activation("a"), SECOND]),
        ([START, SECOND], target(2, [spare("a"), spare("b")]), [activation("a"), activation("b", SECOND)]),
        # A loading standby worker is preferred to a new process, and a loaded one to both.
        ([START], target(1, [spare("a", loaded=False, age_s=5)]), [activation("a")]),
        ([START], target(2, [spare("a", loaded=False, age_s=5), spare("b", age_s=1)]), [activation("b")]),
        # A standby worker of another model cannot be used.
        ([Start("n", "cuda:0", "why")], target(1, [spare("a")]), [Start("n", "cuda:0", "why")]),
        # A draining, outdated or other-kind standby worker cannot be used.
        ([START], target(1, [spare("a", drained_at=NOW - 1)]), [START]),
        (
            [START],
            target(1, [spare("a", kind="cpu")]),
            [START, Drain("a", "no device of its kind (cpu) is used any more")],
        ),
        (
            [START],
            target(1, [spare("a")], outdated={"a": "its settings have changed"}),
            [START, Drain("a", "its settings have changed")],
        ),
        # Surplus ones drain: loading ones first, then the newest.
        ([], target(0, [spare("a")]), [Drain("a", "1 standby workers, standby is 0")]),
        (
            [],
            target(1, [spare("a", age_s=90), spare("b"), spare("c", loaded=False, age_s=30)]),
            [Drain("a", "3 standby workers, standby is 1"), Drain("c", "3 standby workers, standby is 1")],
        ),
        # Standby workers that exceed the drain or start timeout are killed.
        (
            [],
            target(0, [spare("a", drained_at=NOW - DRAIN_GRACE_S - 1)]),
            [Kill("a", "still there 11 s after its drain began")],
        ),
        ([], target(0, [spare("a", drained_at=NOW - DRAIN_GRACE_S + 1)]), []),
        (
            [],
            target(1, [spare("a", loaded=False, age_s=61)]),
            [Kill("a", "not loaded 60 s after its start (workers.start_timeout_s)")],
        ),
        # The back-off after a crash of a worker or of a standby worker applies.
        ([], target(1, [], crashes=CrashBackoff(1, NOW + 1, NOW)), []),
        ([], target(1, [], worker_crashes=CrashBackoff(1, NOW + 1, NOW)), []),
        ([], target(1, [], crashes=CrashBackoff(1, NOW, NOW - 1)), [MORE]),
    ],
)
def test_plan_with_standby_workers(actions: list[Action], own: StandbyTarget, expected: list[Action]) -> None:
    assert plan_actions(actions, own) == expected


def test_models_have_separate_standby_workers() -> None:
    other = WorkerProcess("b", "n", "cuda", 3, NOW - 50, spare=True, loaded_at=NOW - 40)
    models = [target(1, [spare("a")]), target(1, [other], model="n")]
    starts = [Start("n", "cuda:0", "x"), START]
    assert plan_actions(starts, *models) == [Activate("b", "n", "cuda:0", "x"), activation("a")]


def test_only_loaded_standby_workers_are_ready() -> None:
    spares = [spare("a"), spare("b", loaded=False), spare("c", drained_at=NOW), spare("d", kind="cpu")]
    assert count_ready(spares, ["cuda"]) == 1
    assert [as_replica(child).stage for child in spares[:2]] == [Stage.READY, Stage.STARTING]
    assert as_replica(spares[0]).process.ready_at == spares[0].loaded_at
