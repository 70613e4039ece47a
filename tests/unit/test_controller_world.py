"""The whole brain over random histories of a machine: loads, deaths, silences, slow starts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from configs.schema import Scaling
from controller.brain import Brain, Model
from controller.plan import DRAIN_GRACE_S
from controller.policies.queue_depth import decide
from controller.replica import Child, Decision, Drain, Exit, Kill, Limits, Observation, Queue, Replica, Stage

SCALING = Scaling(scale_up_at=4, scale_down_at=1, scale_down_hold_s=20, scale_down_cooldown_s=10, interval_s=10)
NAMES = ("a", "b")


class Machine(RuleBasedStateMachine):
    """Two models on shared devices; the shell's part is done at once and without failing."""

    @initialize(
        devices=st.integers(2, 5),
        least=st.tuples(st.integers(1, 2), st.integers(1, 2)),
        extra=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    )
    def begin(self, devices: int, least: tuple[int, int], extra: tuple[int, int]) -> None:
        slots = [f"cpu:{n}" for n in range(max(devices, sum(least)))]
        self.slots = slots
        self.now, self.number = 0.0, 0
        self.replicas: dict[str, Replica] = {}
        self.tasks: dict[str, int | None] = dict.fromkeys(NAMES, 0)
        self.brain = Brain(
            {
                name: Model(SCALING, Limits(low, low + more, 60, 30, 10), decide, slots, Decision(low, "first"))
                for name, low, more in zip(NAMES, least, extra, strict=True)
            }
        )
        self.models = self.brain.models

    def of(self, model: str) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.child.model == model]

    def observe(self, name: str) -> Observation:
        tasks = self.tasks[name]
        return Observation(name, None if tasks is None else Queue(tasks, 0), self.of(name))

    @rule(seconds=st.floats(0.1, 40))
    def look(self, seconds: float) -> None:
        self.now += seconds
        actions = self.brain.think(self.observe, self.now).plan.actions
        for action in actions:
            match action:
                case Kill(worker):
                    self.end(worker, -9)
                case Drain(worker):
                    old = self.replicas[worker]
                    self.replicas[worker] = replace(
                        old, stage=Stage.DRAINING, child=replace(old.child, drained_at=self.now)
                    )
                case start:
                    self.number += 1
                    child = Child(f"w{self.number}", start.model, start.device, self.number, self.now)
                    self.replicas[child.id] = Replica(child, Stage.STARTING)
        if not any(isinstance(action, Kill) for action in actions):  # whose places are free only now
            assert self.brain.think(self.observe, self.now).plan.actions == [], (
                "what was planned and done is not planned again"
            )

    def end(self, worker: str, status: int) -> None:
        child = self.replicas.pop(worker).child
        self.brain.died(Exit(child, self.now, status))

    @rule(which=st.integers(0, 20))
    def becomes_ready(self, which: int) -> None:
        starting = [r for r in self.replicas.values() if r.stage is Stage.STARTING]
        if starting:
            old = starting[which % len(starting)]
            child = replace(old.child, ready_at=self.now)
            self.replicas[child.id] = replace(old, stage=Stage.READY, child=child)

    @rule(which=st.integers(0, 20), status=st.sampled_from([1, 2, -9]))
    def dies(self, which: int, status: int) -> None:
        if self.replicas:
            self.end(list(self.replicas)[which % len(self.replicas)], status)

    @rule(which=st.integers(0, 20))
    def goes_as_told(self, which: int) -> None:
        draining = [r for r in self.replicas.values() if r.stage is Stage.DRAINING]
        if draining:
            self.end(draining[which % len(draining)].child.id, 0)

    @rule(name=st.sampled_from(NAMES), tasks=st.one_of(st.none(), st.integers(0, 60)))
    def load_changes(self, name: str, tasks: int | None) -> None:
        self.tasks[name] = tasks

    @rule()
    def two_quiet_minutes(self) -> None:
        """Whatever went before: every model has its minimum once crashes and patience are over."""
        for _ in range(26):
            self.look(5.0)
            for replica in list(self.replicas.values()):
                if replica.stage is Stage.STARTING:
                    self.becomes_ready(0)
                elif replica.stage is Stage.DRAINING:
                    self.end(replica.child.id, 0)
        for name, model in self.models.items():
            assert sum(r.stage is Stage.READY for r in self.of(name)) >= model.limits.min_workers

    @invariant()
    def bounds_hold(self) -> None:
        held = Counter(replica.child.device for replica in self.replicas.values())
        assert all(held[device] <= 1 for device in held), "no device is given twice"
        for name, model in self.models.items():
            capacity = [r for r in self.of(name) if r.stage is not Stage.DRAINING]
            assert len(capacity) <= model.limits.max_workers
            assert model.limits.min_workers <= model.decision.desired <= model.limits.max_workers
            assert model.crashes.retry_at - self.now < 60.001
        for replica in self.replicas.values():
            if replica.child.drained_at is not None:
                # A look ends what has outstayed its time; between two looks up to 40 s pass.
                assert self.now - replica.child.drained_at <= 30 + DRAIN_GRACE_S + 40


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
