"""The autoscaler with standby workers on random histories: they are used, replaced, and never counted as workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler
from controller.autoscaler.model_state import ModelState
from controller.policies.queue_depth import decide
from controller.types import (
    Activate,
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

NAMES = ("a", "b")
LIMITS = WorkerLimits(1, 3, start_timeout_s=60, drain_timeout_s=30, lost_after_s=10)
DEVICES = [f"cpu:{number}" for number in range(4)]


class Machine(RuleBasedStateMachine):
    """Two models on four devices. Actions take effect at once and never fail."""

    @initialize(standby=st.tuples(st.integers(0, 2), st.integers(0, 2)))
    def begin(self, standby: tuple[int, int]) -> None:
        self.now, self.number = 0.0, 0
        self.replicas: dict[str, Replica] = {}
        self.spares: dict[str, WorkerProcess] = {}
        self.tasks = dict.fromkeys(NAMES, 0)
        self.models = {
            name: ModelState(self.scaling(count), LIMITS, decide, DEVICES, Decision(1, "first"))
            for name, count in zip(NAMES, standby, strict=True)
        }
        self.autoscaler = Autoscaler(self.models)

    def scaling(self, standby: int) -> Scaling:
        return Scaling(
            policy="queue_depth", standby=standby, scale_up_at=4, scale_down_at=1, scale_down_hold_s=20, interval_s=10
        )

    def of(self, model: str) -> list[WorkerProcess]:
        return [child for child in self.spares.values() if child.model == model]

    def observe(self, name: str) -> Observation:
        replicas = [replica for replica in self.replicas.values() if replica.process.model == name]
        return Observation(name, Queue(self.tasks[name], 0), replicas, spares=self.of(name))

    def new(self, model: str, device: str, *, spare: bool) -> WorkerProcess:
        self.number += 1
        return WorkerProcess(f"w{self.number}", model, device, self.number, self.now, spare=spare)

    @rule(seconds=st.floats(0.1, 40))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        actions = self.autoscaler.tick(
            {name: self.observe(name) for name in self.autoscaler.models}, self.now
        ).plan.actions
        drained = {action.id for action in actions if isinstance(action, Drain)}
        starting = {
            replica.process.model
            for name, replica in self.replicas.items()
            if replica.stage is Stage.STARTING and name not in drained
        }
        starting |= {each.model for each in actions if isinstance(each, Activate)}
        starting |= {each.model for each in actions if isinstance(each, Start) and not each.standby}
        for action in actions:
            match action:
                case Kill(name):
                    self.end(name, -9)
                case Drain(name) if name in self.spares:
                    self.spares[name] = replace(self.spares[name], drained_at=self.now)
                case Drain(name):
                    old = self.replicas[name]
                    self.replicas[name] = replace(
                        old, stage=Stage.DRAINING, process=replace(old.process, drained_at=self.now)
                    )
                case Start(model, device, standby=False):
                    child = self.new(model, device, spare=False)
                    self.replicas[child.id] = Replica(child, Stage.STARTING)
                case Start(model, kind):
                    assert model not in starting, "a worker comes first"
                    assert self.models[model].standby_crashes.retry_at <= self.now
                    child = self.new(model, kind, spare=True)
                    self.spares[child.id] = child
                case Activate(name, model, device):
                    child = self.spares.pop(name)
                    assert (child.model, child.drained_at) == (model, None)
                    child = replace(child, device=device, spare=False, started_at=self.now)
                    self.replicas[name] = Replica(child, Stage.STARTING)
        if not any(isinstance(action, Kill) for action in actions):  # their devices are free only now
            again = self.autoscaler.tick({name: self.observe(name) for name in self.autoscaler.models}, self.now).plan
            # Only another swap may follow: a new worker lowers the value of the others of its model.
            swapped = {swap.worker for swap in again.swaps}
            rest = [action for action in again.actions if not (isinstance(action, Drain) and action.id in swapped)]
            assert rest == [], "what was planned and done is not planned again"

    def end(self, name: str, status: int) -> None:
        child = self.spares.pop(name) if name in self.spares else self.replicas.pop(name).process
        before = {model: (own.lost, own.crashes) for model, own in self.models.items()}
        self.autoscaler.on_exit(Exit(child, self.now, status))
        if child.spare:
            assert before == {model: (own.lost, own.crashes) for model, own in self.models.items()}, (
                "the death of a spare is nothing to the workers"
            )

    @rule(index=st.integers(0, 20))
    def becomes_ready(self, index: int) -> None:
        starting = [r for r in self.replicas.values() if r.stage is Stage.STARTING]
        if starting:
            old = starting[index % len(starting)]
            child = replace(old.process, ready_at=self.now)
            self.replicas[child.id] = replace(old, stage=Stage.READY, process=child)

    @rule(index=st.integers(0, 20))
    def has_loaded(self, index: int) -> None:
        loading = [child for child in self.spares.values() if child.loaded_at is None]
        if loading:
            old = loading[index % len(loading)]
            self.spares[old.id] = replace(old, loaded_at=self.now)

    @rule(index=st.integers(0, 20), status=st.sampled_from([0, 1, -9]))
    def worker_crashes(self, index: int, status: int) -> None:
        if processes := [*self.replicas, *self.spares]:
            self.end(processes[index % len(processes)], status)

    @rule()
    def draining_workers_exit(self) -> None:
        for child in [*self.spares.values(), *(replica.process for replica in self.replicas.values())]:
            if child.drained_at is not None:
                self.end(child.id, 0)

    @rule(name=st.sampled_from(NAMES), tasks=st.integers(0, 60))
    def load_changes(self, name: str, tasks: int) -> None:
        self.tasks[name] = tasks

    @rule(name=st.sampled_from(NAMES), standby=st.integers(0, 2))
    def standby_changes(self, name: str, standby: int) -> None:
        self.models[name].scaling = self.scaling(standby)

    @rule()
    def settles_without_events(self) -> None:
        """From any state the number of standby workers becomes the configured one, and all have loaded."""
        for _ in range(36):
            self.tick(5.0)
            self.becomes_ready(0)
            self.has_loaded(0)
            self.draining_workers_exit()
        for name in NAMES:
            loaded = [child for child in self.of(name) if child.loaded_at is not None and child.drained_at is None]
            assert len(loaded) == len(self.of(name)) == self.models[name].scaling.standby

    @invariant()
    def bounds_hold(self) -> None:
        held = Counter(replica.process.device for replica in self.replicas.values())
        assert all(count <= 1 for count in held.values()), "no device is given twice"
        assert set(held) <= set(DEVICES), "and none that is not there"
        for name, model in self.models.items():
            seen = self.observe(name)
            serving = [replica for replica in seen.replicas if replica.stage is not Stage.DRAINING]
            assert seen.provisioned == len(serving), "spares are no capacity"
            assert len(serving) <= LIMITS.max_workers
            assert model.standby_crashes.retry_at - self.now < 60.001
            staying = [child for child in seen.spares if child.drained_at is None]
            assert len(staying) <= 2, "as many as `standby` ever was"
            assert sum(child.loaded_at is None for child in staying) <= 1, "one at a time"
            assert all(child.device == "cpu" for child in seen.spares)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
