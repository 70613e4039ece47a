"""The plan: starts, drains and kills of workers; and the back-off after crashes."""

from __future__ import annotations

import pytest

from controller.planning.crash_backoff import after_exit, decay, pending_replacements, record_crash
from controller.planning.plan import ModelDemand, Plan, make_plan
from controller.types import (
    Action,
    CrashBackoff,
    Decision,
    Drain,
    Kill,
    Observation,
    Queue,
    Replica,
    Stage,
    Start,
    WorkerLimits,
)
from host.types import Exit, WorkerProcess

LIMITS = WorkerLimits(min_workers=1, max_workers=8, start_timeout_s=60, drain_timeout_s=30, lost_after_s=10)
NOW = 1000.0


def reasons(plan: Plan) -> dict[str, str]:
    return {model: blocked.reason for model, blocked in plan.blocked.items()}


def replica(
    name: str,
    stage: Stage = Stage.READY,
    device: str = "cuda:0",
    *,
    load: int = 0,
    age: float = 100.0,
    drained: float | None = None,
    unheard: float | None = None,
    stuck: bool = False,
) -> Replica:
    child = WorkerProcess(name, "m", device, 1, NOW - age, None if drained is None else NOW - drained)
    return Replica(child, stage, load, None if unheard is None else NOW - unheard, stuck)


def wanted(
    replicas: list[Replica],
    desired: int,
    slots: tuple[str, ...] = ("cuda:0", "cuda:1", "cuda:2"),
    crashes: CrashBackoff | None = None,
    model: str = "m",
) -> ModelDemand:
    seen = Observation(model, Queue(0, 0), replicas)
    return ModelDemand(seen, Decision(desired, "why"), LIMITS, crashes or CrashBackoff(), slots)


def actions(*models: ModelDemand) -> list[Action]:
    return list(make_plan(models, NOW).actions)


@pytest.mark.parametrize(
    ("replicas", "desired", "expected"),
    [
        ([], 2, [Start("m", "cuda:0", "why"), Start("m", "cuda:1", "why")]),
        ([replica("a")], 1, []),
        ([replica("a")], 2, [Start("m", "cuda:1", "why")]),
        # A starting worker counts, so no second one starts.
        ([replica("a", Stage.STARTING, age=5)], 1, []),
        # A draining worker is no capacity, but occupies its device.
        ([replica("a", Stage.DRAINING, drained=1)], 1, [Start("m", "cuda:1", "why")]),
        # Starting workers stop first, then the least busy, then the newest.
        ([replica("a"), replica("b", Stage.STARTING, "cuda:1", age=5)], 1, [Drain("b", "why")]),
        ([replica("a", load=3), replica("b", load=1), replica("c", load=2)], 2, [Drain("b", "why")]),
        # One that is almost loaded is worth more than an idle one, but never the last that serves.
        ([replica("a"), replica("b", age=90), replica("c", Stage.STARTING, age=30)], 2, [Drain("b", "why")]),
        ([replica("a"), replica("b", age=90), replica("c", Stage.STARTING, age=10)], 2, [Drain("c", "why")]),
        ([replica("a"), replica("b", Stage.STARTING, "cuda:1", age=30)], 1, [Drain("b", "why")]),
        ([replica("old", age=90), replica("new", age=10), replica("mid", age=50)], 2, [Drain("new", "why")]),
        # Timeouts expire.
        ([replica("a", Stage.STARTING, age=61)], 1, ["kill a", Start("m", "cuda:1", "why")]),
        ([replica("a", Stage.STARTING, age=59)], 1, []),
        ([replica("a", Stage.DRAINING, drained=41), replica("b", device="cuda:1")], 1, ["kill a"]),
        ([replica("a", Stage.DRAINING, drained=39), replica("b", device="cuda:1")], 1, []),
        ([replica("a", unheard=31)], 1, ["kill a", Start("m", "cuda:1", "why")]),
        ([replica("a", unheard=29)], 1, []),
        ([replica("a", stuck=True)], 1, ["kill a", Start("m", "cuda:1", "why")]),
        # It drains, and its timeout has not expired.
        ([replica("a", Stage.DRAINING, drained=1, stuck=True), replica("b", device="cuda:1")], 1, []),
    ],
)
def test_plan_of_one_model(replicas: list[Replica], desired: int, expected: list[Action | str]) -> None:
    planned = [f"kill {a.id}" if isinstance(a, Kill) else a for a in actions(wanted(replicas, desired))]
    assert planned == expected


def test_plan_is_idempotent_after_execution() -> None:
    own = wanted([], 2)
    started = [a for a in actions(own) if isinstance(a, Start)]
    there = [replica(f"w{i}", Stage.STARTING, a.device, age=0) for i, a in enumerate(started)]
    assert actions(wanted(there, 2)) == []


def test_no_free_device_blocks_with_a_reason() -> None:
    plan = make_plan([wanted([replica("a")], 3, slots=("cuda:0",))], NOW)
    assert plan.actions == []
    assert reasons(plan) == {"m": "2 more wanted, but every device is taken"}


def starts(*models: ModelDemand) -> list[tuple[str, str]]:
    return [(a.model, a.device) for a in actions(*models) if isinstance(a, Start)]


def test_models_share_devices_without_double_use() -> None:
    # Every model gets its minimum before any gets more.
    assert starts(wanted([], 2, model="a"), wanted([], 2, model="b")) == [
        ("a", "cuda:0"),
        ("b", "cuda:1"),
        ("a", "cuda:2"),
    ]


def test_busy_model_leaves_device_of_others_only_worker() -> None:
    busy = wanted([replica("a"), replica("b", device="cuda:1")], 3)
    fallen = wanted([], 1, model="other", crashes=CrashBackoff(3, NOW + 30))
    assert starts(busy, fallen) == []
    assert reasons(make_plan([busy, fallen], NOW)) == {
        "m": "1 more wanted, but every device is taken",
        "other": "3 crashes in a row, next try in 30 s",
    }
    assert starts(busy, wanted([], 1, model="other", crashes=CrashBackoff(3, NOW))) == [("other", "cuda:2")]
    # Once all have their minimum, the other devices are free for any model.
    assert starts(busy, wanted([replica("c", device="cuda:3")], 1, model="other")) == [("m", "cuda:2")]


def test_start_uses_the_least_used_device() -> None:
    shared = ("cuda:0", "cuda:1", "cuda:0")
    assert starts(wanted([replica("a")], 2, shared)) == [("m", "cuda:1")]
    assert starts(wanted([replica("a"), replica("b", device="cuda:1")], 3, shared)) == [("m", "cuda:0")]


def test_device_listed_twice_is_shared() -> None:
    starts = actions(wanted([], 3, slots=("cuda:0", "cuda:0", "cuda:1")))
    assert sorted(s.device for s in starts if isinstance(s, Start)) == ["cuda:0", "cuda:0", "cuda:1"]


def test_back_off_delays_starts_with_a_reason() -> None:
    plan = make_plan([wanted([], 1, crashes=CrashBackoff(3, NOW + 4))], NOW)
    assert plan.actions == []
    assert reasons(plan) == {"m": "3 crashes in a row, next try in 4 s"}
    assert actions(wanted([], 1, crashes=CrashBackoff(3, NOW))) == [Start("m", "cuda:0", "why")]


def ended(status: int | None, *, ready: float | None, reported: bool = False, served: bool = False) -> Exit:
    child = WorkerProcess(
        "w", "m", "cuda:0", 1, 0.0, 990.0 if reported else None, None if ready is None else NOW - ready
    )
    return Exit(child, NOW, status, has_served=served)


def test_back_off_doubles_up_to_a_minute() -> None:
    crashes, waits = CrashBackoff(), []
    for _ in range(8):
        crashes, on_crash = after_exit(crashes, ended(1, ready=None))
        assert on_crash
        waits.append(crashes.retry_at - NOW)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_back_off_of_a_model_that_crashes_for_days() -> None:
    assert record_crash(CrashBackoff(10**6), NOW).retry_at == NOW + 60


@pytest.mark.parametrize(
    ("exit_", "count", "on_crash"),
    [
        (ended(1, ready=5.0), 3, True),  # soon after it was ready: it counts like a failed start
        (ended(-9, ready=100.0), 0, True),  # after healthy service: replaced at once, and the count is reset
        (ended(0, ready=100.0, reported=True), 2, False),
        (ended(-9, ready=None, reported=True), 2, False),
        (ended(None, ready=None), 3, True),
        (ended(0, ready=5.0), 2, False),  # its operator stopped it
        (ended(0, ready=None, served=True), 2, False),  # between its readiness and the next snapshot
        (ended(0, ready=None), 3, True),  # the engine has ended the process
        (ended(-15, ready=None), 3, True),
    ],
)
def test_exits_that_count_as_crashes(exit_: Exit, count: int, on_crash: bool) -> None:
    after, was_crash = after_exit(CrashBackoff(2, 0.0), exit_)
    assert (after.count, was_crash) == (count, on_crash)


@pytest.mark.parametrize(
    ("ready_ago", "crashed_ago", "stage", "forgiven"),
    [
        (60.0, 100.0, Stage.READY, True),
        (59.0, 100.0, Stage.READY, False),
        # It was ready before the crash: this proves nothing about later workers.
        (200.0, 100.0, Stage.READY, False),
        (60.0, 100.0, Stage.DRAINING, False),
        (None, 100.0, Stage.STARTING, False),
    ],
)
def test_crashes_are_reset_by_a_healthy_later_worker(
    ready_ago: float | None, crashed_ago: float, stage: Stage, forgiven: bool
) -> None:
    crashes = record_crash(CrashBackoff(4), NOW - crashed_ago)
    child = WorkerProcess("w", "m", "cuda:0", 1, NOW - 300, None, None if ready_ago is None else NOW - ready_ago)
    after = decay(crashes, [Replica(child, stage)], NOW)
    assert after == (CrashBackoff() if forgiven else crashes)
    assert decay(crashes, [], NOW) == crashes


@pytest.mark.parametrize(
    ("lost", "desired", "stages", "owed"),
    [
        (0, 2, [Stage.READY], 0),  # a worker that never existed needs no replacement
        (1, 2, [Stage.READY], 1),
        (1, 2, [Stage.READY, Stage.STARTING], 0),
        (1, 2, [Stage.READY, Stage.DRAINING], 1),
        (3, 3, [Stage.READY], 2),
        (3, 1, [Stage.READY], 0),  # no longer desired
    ],
)
def test_pending_replacements_after_crashes(lost: int, desired: int, stages: list[Stage], owed: int) -> None:
    assert pending_replacements(lost, desired, [replica(f"w{i}", stage) for i, stage in enumerate(stages)]) == owed
