"""Spares in the place of starts, and their number kept: tables of single plans."""

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
    StartSpare,
    WorkerLimits,
    WorkerProcess,
)

NOW = 1000.0
LIMITS = WorkerLimits(1, 4, start_timeout_s=60, drain_timeout_s=30, lost_after_s=10)


def spare(name: str, age_s: float = 100.0, *, loaded: bool = True, kind: str = "cuda", **changes: Any) -> WorkerProcess:
    started = NOW - age_s
    return WorkerProcess(name, "m", kind, 1, started, spare=True, loaded_at=started + 10 if loaded else None, **changes)


def worker(stage: Stage) -> Replica:
    return Replica(WorkerProcess("w", "m", "cuda:7", 2, NOW - 5), stage)


def keeping(
    wanted: int, spares: Sequence[WorkerProcess], replicas: Sequence[Replica] = (), model: str = "m", **changes: Any
) -> StandbyTarget:
    seen = Observation(model, None, replicas, spares=spares)
    usual: dict[str, Any] = {"kind": "cuda", "crashes": CrashBackoff(), "worker_crashes": CrashBackoff()}
    return StandbyTarget(seen, wanted, limits=LIMITS, **usual | changes)


def planned(actions: Sequence[Action], *models: StandbyTarget) -> list[Action]:
    return list(with_standby(Plan(actions, {}), models, NOW).actions)


START = Start("m", "cuda:0", "why")
SECOND = Start("m", "cuda:1", "why")
MORE = StartSpare("m", "cuda", "0 standby workers, standby is 1")


def called(name: str, start: Start = START) -> Activate:
    return Activate(name, start.model, start.device, start.reason)


@pytest.mark.parametrize(
    ("actions", "own", "expected"),
    [
        # Without spares and without a wish for any, the plan is as it was.
        ([START], keeping(0, []), [START]),
        ([], keeping(1, []), [MORE]),
        ([], keeping(1, [spare("a")]), []),
        ([], keeping(3, [spare("a")]), [StartSpare("m", "cuda", "1 standby workers, standby is 3")]),
        # One at a time.
        ([], keeping(3, [spare("a", loaded=False, age_s=5)]), []),
        # A worker comes first: no spare is started while one starts, whichever way.
        ([START], keeping(1, []), [START]),
        ([], keeping(1, [], [worker(Stage.STARTING)]), []),
        ([], keeping(1, [], [worker(Stage.READY)]), [MORE]),
        ([], keeping(1, [], [worker(Stage.DRAINING)]), [MORE]),
        # Starts are taken from the spares, and made good later.
        ([START], keeping(1, [spare("a")]), [called("a")]),
        ([START], keeping(2, [spare("a"), spare("b", age_s=200)]), [called("b")]),
        ([START, SECOND], keeping(1, [spare("a")]), [called("a"), SECOND]),
        ([START, SECOND], keeping(2, [spare("a"), spare("b")]), [called("a"), called("b", SECOND)]),
        # One that loads is ahead of a new process, and behind one that has loaded.
        ([START], keeping(1, [spare("a", loaded=False, age_s=5)]), [called("a")]),
        ([START], keeping(2, [spare("a", loaded=False, age_s=5), spare("b", age_s=1)]), [called("b")]),
        # Another model's spare is of no use.
        ([Start("n", "cuda:0", "why")], keeping(1, [spare("a")]), [Start("n", "cuda:0", "why")]),
        # Nor is one that goes, that is of another kind, or that has loaded what is no more to be served.
        ([START], keeping(1, [spare("a", drained_at=NOW - 1)]), [START]),
        (
            [START],
            keeping(1, [spare("a", kind="cpu")]),
            [START, Drain("a", "no device of its kind (cpu) is used any more")],
        ),
        (
            [START],
            keeping(1, [spare("a")], outdated={"a": "its settings have changed"}),
            [START, Drain("a", "its settings have changed")],
        ),
        # Too many go: those that load first, then the newest.
        ([], keeping(0, [spare("a")]), [Drain("a", "1 standby workers, standby is 0")]),
        (
            [],
            keeping(1, [spare("a", age_s=90), spare("b"), spare("c", loaded=False, age_s=30)]),
            [Drain("a", "3 standby workers, standby is 1"), Drain("c", "3 standby workers, standby is 1")],
        ),
        # Those that do not go when told, or never finish loading, are ended.
        (
            [],
            keeping(0, [spare("a", drained_at=NOW - DRAIN_GRACE_S - 1)]),
            [Kill("a", "still there 11 s after its drain began")],
        ),
        ([], keeping(0, [spare("a", drained_at=NOW - DRAIN_GRACE_S + 1)]), []),
        ([], keeping(1, [spare("a", loaded=False, age_s=61)]), [Kill("a", "not loaded 60 s after its start")]),
        # After a crash of either, the pause is kept.
        ([], keeping(1, [], crashes=CrashBackoff(1, NOW + 1, NOW)), []),
        ([], keeping(1, [], worker_crashes=CrashBackoff(1, NOW + 1, NOW)), []),
        ([], keeping(1, [], crashes=CrashBackoff(1, NOW, NOW - 1)), [MORE]),
    ],
)
def test_plan_with_standby_workers(actions: list[Action], own: StandbyTarget, expected: list[Action]) -> None:
    assert planned(actions, own) == expected


def test_models_have_separate_standby_workers() -> None:
    other = WorkerProcess("b", "n", "cuda", 3, NOW - 50, spare=True, loaded_at=NOW - 40)
    models = [keeping(1, [spare("a")]), keeping(1, [other], model="n")]
    starts = [Start("n", "cuda:0", "x"), START]
    assert planned(starts, *models) == [Activate("b", "n", "cuda:0", "x"), called("a")]


def test_only_loaded_standby_workers_are_ready() -> None:
    spares = [spare("a"), spare("b", loaded=False), spare("c", drained_at=NOW), spare("d", kind="cpu")]
    assert count_ready(spares, "cuda") == 1
    assert [as_replica(child).stage for child in spares[:2]] == [Stage.READY, Stage.STARTING]
    assert as_replica(spares[0]).process.ready_at == spares[0].loaded_at
