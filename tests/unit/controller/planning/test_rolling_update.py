"""Rolling updates: which workers are outdated, and their replacement one at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler
from controller.autoscaler.model_state import ModelState
from controller.planning.rolling_update import (
    UpdatePolicy,
    describe_progress,
    next_to_replace,
    outdated,
    surge,
    without_surge,
)
from controller.policies import queue_depth
from controller.types import CrashBackoff, Decision, Drain, Observation, Queue, Replica, Stage, Start, WorkerLimits
from host.types import Exit, WorkerProcess

NOW = 100_000.0
READY, STARTING, DRAINING = Stage.READY, Stage.STARTING, Stage.DRAINING


def worker(name: str, stage: Stage = READY, *, age: float = 100.0, new: bool = False) -> Replica:
    return Replica(WorkerProcess(name, "m", "sim:0", 1, NOW - age, generation="new" if new else "old"), stage)


A, B, C = worker("a", age=300), worker("b", age=200), worker("c", age=100)
X, Y = worker("x", new=True, age=50), worker("y", STARTING, new=True, age=2)


def test_worker_that_is_to_be_restarted_is_outdated() -> None:
    assert outdated([A, B, C], UpdatePolicy(renew_workers=frozenset({"b"})), NOW) == {"b": "by command"}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (UpdatePolicy(), {}),
        (UpdatePolicy("old"), {"x": "its settings have changed", "y": "its settings have changed"}),
        (UpdatePolicy("new"), dict.fromkeys("abc", "its settings have changed")),
        (UpdatePolicy("", renew_before=NOW - 150), dict.fromkeys("ab", "by command")),
        (UpdatePolicy("", max_age_s=100.0), dict.fromkeys("abc", "older than max_worker_age_s (100) allows")),
        (UpdatePolicy("", max_age_s=400.0), {}),
    ],
)
def test_outdated_workers_and_reasons(policy: UpdatePolicy, expected: dict[str, str]) -> None:
    found = outdated([C, A, X, B, Y, worker("gone", DRAINING, age=9999)], policy, NOW)
    assert found == expected
    assert list(found) == [name for name in "abcxy" if name in expected], "the oldest first"


def test_maximum_age_differs_between_workers() -> None:
    born = [
        replace(worker(f"m-{number:06x}"), process=replace(A.process, id=f"m-{number:06x}")) for number in range(200)
    ]
    started = A.process.started_at

    def aged(after_s: float) -> int:
        return len(outdated(born, UpdatePolicy(max_age_s=1000.0), started + after_s))

    assert aged(899.0) == 0
    assert 60 < aged(950.0) < 140
    assert aged(1000.0) == 200


OLD = dict.fromkeys("abc", "old")


@pytest.mark.parametrize(
    ("replicas", "desired", "crashes", "expected"),
    [
        ([A, B], 2, 0, 1),  # all are ready: the update starts
        ([X], 1, 0, 0),  # no worker is outdated
        ([A, B, Y], 2, 0, 1),  # the new worker is starting
        ([A, B, worker("c", STARTING)], 2, 0, 1),  # the settings have changed again since
        ([A, B, X], 2, 0, 0),  # it is ready: one worker is surplus
        ([A, X, worker("b", DRAINING)], 2, 0, 0),  # one drains: wait
        ([A, Y], 2, 0, 0),  # a regular start is under way: wait
        ([A, B], 1, 0, 0),  # one is surplus already
        ([A], 2, 0, 1),  # a worker is missing
        ([A, B], 2, 1, 0),  # a new worker has crashed: the update stops
        ([A, B, Y], 2, 1, 1),  # ... but a new worker that is already starting may finish
    ],
)
def test_surge_lasts_as_long_as_needed(replicas: list[Replica], desired: int, crashes: int, expected: int) -> None:
    assert surge(replicas, desired, OLD, CrashBackoff(crashes)) == expected


@pytest.mark.parametrize(
    ("replicas", "desired", "going", "counted"),
    [
        ([B, A], 2, "", "ba"),
        ([B, A, Y], 2, "", "ba"),
        ([B, A, X], 2, "a", "bx"),
        ([B, A, C, X], 2, "ab", "bcx"),
        ([worker("a", DRAINING), B, X], 2, "", "abx"),
        ([X], 1, "", "x"),
        ([A, Y], 2, "", "ay"),
    ],
)
def test_next_to_replace_and_counted_workers(replicas: list[Replica], desired: int, going: str, counted: str) -> None:
    assert "".join(r.process.id for r in next_to_replace(replicas, desired, OLD)) == going
    assert "".join(r.process.id for r in without_surge(replicas, desired, OLD)) == counted


@pytest.mark.parametrize(
    ("old", "crashes", "expected"),
    [
        ({}, 0, ""),
        ({"a": "why"}, 0, "1 of 2 to be replaced: why"),
        ({"a": "why"}, 1, "1 of 2 to be replaced: why; stopped by a crash"),
        ({"a": "why", "b": "why"}, 3, "2 of 2 to be replaced: why; stopped by 3 crashes in a row"),
    ],
)
def test_progress_is_described(old: dict[str, str], crashes: int, expected: str) -> None:
    assert describe_progress([A, B, worker("c", DRAINING)], old, CrashBackoff(crashes)) == expected


SCALING = Scaling(
    policy="queue_depth",
    scale_up_at=4,
    scale_down_at=1,
    scale_down_hold_s=20,
    scale_down_cooldown_s=10,
    interval_s=10,
)


class RollingUpdateMachine(RuleBasedStateMachine):
    """The autoscaler with one model whose settings change, on a machine with or without a free device."""

    @initialize(devices=st.integers(1, 5), min_workers=st.integers(1, 3), more=st.integers(0, 2))
    def begin(self, devices: int, min_workers: int, more: int) -> None:
        self.now, self.number, self.tasks, self.changes = 0.0, 0, 0, 0
        self.slots = [f"sim:{n}" for n in range(max(devices, min_workers))]
        self.replicas: dict[str, Replica] = {}
        limits = WorkerLimits(min_workers, min_workers + more, 600, 600, 10)
        self.model = ModelState(
            SCALING,
            limits,
            queue_depth.decide,
            self.slots,
            Decision(min_workers, "first"),
            update_policy=UpdatePolicy("0"),
        )
        self.autoscaler = Autoscaler({"m": self.model})

    def observe(self, name: str) -> Observation:
        return Observation(name, Queue(self.tasks, 0), list(self.replicas.values()))

    def of(self, *stages: Stage) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.stage in stages]

    @property
    def old(self) -> int:
        """Return the outdated workers that are not draining."""
        return sum(r.process.generation != str(self.changes) for r in self.of(READY, STARTING))

    @rule(seconds=st.floats(0.1, 15))
    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        before, room = self.of(READY), len(self.slots) > len(self.replicas)
        desired, leaving = self.model.decision.desired, len(self.of(DRAINING))
        actions = self.autoscaler.tick(
            {name: self.observe(name) for name in self.autoscaler.models}, self.now
        ).plan.actions
        drained = [action.id for action in actions if isinstance(action, Drain)]
        if room and leaving == 0 and desired == self.model.decision.desired and len(before) <= desired:
            assert not set(drained) & {r.process.id for r in before}, "with room the new one comes first"
        for action in actions:
            match action:
                case Drain(name):
                    replica = self.replicas[name]
                    child = replace(replica.process, drained_at=self.now)
                    self.replicas[name] = replace(replica, stage=DRAINING, process=child)
                case Start(_, device):
                    self.number += 1
                    child = WorkerProcess(f"w{self.number}", "m", device, 1, self.now, generation=str(self.changes))
                    self.replicas[child.id] = Replica(child, STARTING)
                case _:
                    raise AssertionError(f"nothing else is called for: {action}")
        again = self.autoscaler.tick(
            {name: self.observe(name) for name in self.autoscaler.models}, self.now
        ).plan.actions
        assert again == [], "what was planned and done is not planned again"

    @rule()
    def first_becomes_ready(self) -> None:
        for replica in self.of(STARTING)[:1]:
            child = replace(replica.process, ready_at=self.now)
            self.replicas[child.id] = replace(replica, stage=READY, process=child)

    @rule()
    def first_exits(self) -> None:
        for replica in self.of(DRAINING)[:1]:
            self.end(replica, 0)

    @rule(index=st.integers(0, 9))
    def crashes_randomly(self, index: int) -> None:
        staying = self.of(READY, STARTING)
        if staying:
            self.end(staying[index % len(staying)], 1)

    def end(self, replica: Replica, status: int) -> None:
        del self.replicas[replica.process.id]
        self.autoscaler.on_exit(Exit(replica.process, self.now, status))

    @precondition(lambda self: self.changes < 3)
    @rule()
    def settings_change(self) -> None:
        self.changes += 1
        self.model.update_policy = UpdatePolicy(str(self.changes))
        self.model.crashes = CrashBackoff()

    @rule(tasks=st.integers(0, 30))
    def load_changes(self, tasks: int) -> None:
        self.tasks = tasks

    @rule()
    def settles(self) -> None:
        """From any state all workers get the newest settings, and never too few are ready."""
        self.tasks, self.model.crashes = 0, CrashBackoff()
        for _ in range(12 + 4 * len(self.slots)):
            self.tick(8.0)
            self.first_becomes_ready()
            self.tick(0.5)
            self.first_exits()
        assert self.old == 0
        assert self.model.limits.min_workers <= len(self.of(READY, STARTING)) <= self.model.decision.desired

    @invariant()
    def one_at_a_time(self) -> None:
        staying = self.of(READY, STARTING)
        assert len(staying) <= self.model.limits.max_workers + 1
        held = Counter(replica.process.device for replica in self.replicas.values())
        assert all(count == 1 for count in held.values()), "no device is given twice"


TestRollingUpdateMachine = RollingUpdateMachine.TestCase
TestRollingUpdateMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def make_autoscaler(
    *replicas: Replica, devices: int, policy: UpdatePolicy, crashes: int = 0, desired: int = 2
) -> Autoscaler:
    limits = WorkerLimits(desired, desired, 600, 60, 10)
    slots = [f"sim:{n}" for n in range(devices)]
    model = ModelState(SCALING, limits, queue_depth.decide, slots, Decision(desired, "first"), update_policy=policy)
    model.crashes = CrashBackoff(crashes, NOW + 5, NOW - 1) if crashes else CrashBackoff()
    return Autoscaler({"m": model})


def on_devices(*replicas: Replica) -> list[Replica]:
    return [replace(r, process=replace(r.process, device=f"sim:{number}")) for number, r in enumerate(replicas)]


@pytest.mark.parametrize(
    ("replicas", "devices", "crashes", "expected"),
    [
        ([A, B], 3, 0, ["Start sim:2: it replaces a: its settings have changed"]),
        (
            [A, B],
            2,
            0,
            ["Drain a: its settings have changed; no device is free, so it stops before its replacement starts"],
        ),
        ([A, B], 3, 1, []),
        ([A, B, X], 3, 0, ["Drain a: its settings have changed"]),
        ([A, B, Y], 3, 0, []),
        (
            [B, X],
            2,
            0,
            ["Drain b: its settings have changed; no device is free, so it stops before its replacement starts"],
        ),
        ([worker("a", DRAINING), B, X], 4, 0, []),
    ],
)
def test_plan_replaces_outdated_workers(
    replicas: list[Replica], devices: int, crashes: int, expected: list[str]
) -> None:
    replicas = on_devices(*replicas)
    autoscaler = make_autoscaler(*replicas, devices=devices, policy=UpdatePolicy("new"), crashes=crashes)
    plan = autoscaler.tick({name: Observation(name, Queue(3, 0), replicas) for name in autoscaler.models}, NOW).plan
    descriptions = [
        f"Start {action.device}: {action.reason}"
        if isinstance(action, Start)
        else f"Drain {action.id}: {action.reason}"
        for action in plan.actions
        if isinstance(action, Start | Drain)
    ]
    assert descriptions == expected
    assert len(descriptions) == len(plan.actions)
    assert plan.blocked == {}


def test_missing_worker_has_priority_over_replacement() -> None:
    limits = WorkerLimits(1, 2, 600, 60, 10)
    replicas = {"m": on_devices(A), "n": []}
    models = {
        name: ModelState(
            SCALING,
            limits,
            queue_depth.decide,
            ["sim:0", "sim:1"],
            Decision(1, "first"),
            update_policy=UpdatePolicy("new"),
        )
        for name in ("m", "n")
    }
    plan = Autoscaler(models).tick({name: Observation(name, Queue(0, 0), replicas[name]) for name in models}, NOW).plan
    assert next((type(action), getattr(action, "model", "")) for action in plan.actions) == (Start, "n")
    assert (
        Drain("a", "its settings have changed; no device is free, so it stops before its replacement starts")
        in plan.actions
    )


# ---- overrides in the autoscaler


def test_override_replaces_policy_until_its_end() -> None:
    replicas = on_devices(A, B)
    autoscaler = make_autoscaler(*replicas, devices=4, policy=UpdatePolicy())
    model = autoscaler.models["m"]
    model.limits = replace(model.limits, min_workers=1, max_workers=4)

    def decide(now: float, tasks: int) -> list[tuple[str, int]]:
        decided = autoscaler.tick(
            {name: Observation(name, Queue(tasks, 0), replicas) for name in autoscaler.models}, now
        ).decided
        return [(replica.trigger, replica.decision.desired) for replica in decided]

    assert decide(NOW, 3) == [("tick", 2)]
    model.override = Decision(4, "held")
    assert decide(NOW + 1, 0) == [("override", 4)]
    assert decide(NOW + 500, 0) == [], "it is said once"
    model.override, model.decided_at = None, float("-inf")
    assert [trigger for trigger, _ in decide(NOW + 501, 3)] == ["tick"]


def test_paused_autoscaler_replaces_dead_workers() -> None:
    replicas = on_devices(A, B, C)
    autoscaler = make_autoscaler(*replicas, devices=4, policy=UpdatePolicy(), desired=1)
    autoscaler.models["m"].limits = WorkerLimits(1, 4, 600, 60, 10)
    autoscaler.paused = True
    result = autoscaler.tick({name: Observation(name, Queue(99, 0), replicas) for name in autoscaler.models}, NOW)
    assert (result.decided, result.plan.actions) == ([], [])
    autoscaler.on_exit(Exit(replicas[0].process, NOW, -9))
    result = autoscaler.tick(
        {name: Observation(name, Queue(99, 0), replicas[1:]) for name in autoscaler.models}, NOW + 100
    )
    assert result.decided == []
    assert [type(action) for action in result.plan.actions] == [Start]


@pytest.mark.parametrize("newcomer", [Y, X])
def test_policy_does_not_count_the_surge_worker(newcomer: Replica) -> None:
    replicas = on_devices(A, B, newcomer)
    autoscaler = make_autoscaler(*replicas, devices=4, policy=UpdatePolicy("new"))
    autoscaler.models["m"].limits = WorkerLimits(1, 4, 600, 60, 10)
    [decided] = autoscaler.tick(
        {name: Observation(name, Queue(4, 0), replicas) for name in autoscaler.models}, NOW
    ).decided
    assert (decided.observation.provisioned, decided.decision.desired) == (2, 2)
