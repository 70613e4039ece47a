"""The autoscaler on random histories: loads, crashes, missing snapshots, slow starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler, DecisionEvent
from controller.autoscaler.model_state import ModelState
from controller.planning.scale_down import DRAIN_GRACE_S
from controller.policies import POLICIES
from controller.types import Decision, Drain, Kill, Observation, Queue, Replica, Stage, Start, WorkerLimits
from host.types import Exit, WorkerProcess

COMMON: dict[str, Any] = {"interval_s": 10, "scale_to_zero": {"idle_s": 60}, "slo": {"max_wait_s": 10}}
SCALING: dict[str, dict[str, Any]] = {
    "queue_depth": {"scale_up_at": 4, "scale_down_at": 1, "scale_down_hold_s": 20, "scale_down_cooldown_s": 10},
    "ongoing_requests": {"target_ongoing_requests": 4, "upscale_delay_s": 10, "downscale_delay_s": 30},
    "slo_work": {"startup_hold_s": 120},
    "static": {},
    "schedule": {"schedule": [{"cron": "*/2 * * * *", "workers": 1}, {"cron": "1-59/2 * * * *", "workers": 3}]},
}
NAMES = ("a", "b")
#: Seconds of work of a task.
TASK_S = 4.0


class Machine(RuleBasedStateMachine):
    """Two models on shared devices. Actions take effect at once and never fail."""

    @initialize(
        devices=st.integers(2, 5),
        min_workers=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        extra=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        policies=st.tuples(st.sampled_from(sorted(SCALING)), st.sampled_from(sorted(SCALING))),
    )
    def begin(
        self, devices: int, min_workers: tuple[int, int], extra: tuple[int, int], policies: tuple[str, str]
    ) -> None:
        slots = [f"cpu:{n}" for n in range(max(devices, sum(max(low, 1) for low in min_workers)))]
        self.slots = slots
        self.now, self.number = 0.0, 0
        self.replicas: dict[str, Replica] = {}
        self.tasks: dict[str, int | None] = dict.fromkeys(NAMES, 0)
        self.started = dict.fromkeys(NAMES, 0)
        models = {}
        for name, low, more, policy in zip(NAMES, min_workers, extra, policies, strict=True):
            limits = WorkerLimits(low, max(low + more, 1), 60, 30, 10)
            scaling = Scaling.model_validate(COMMON | {"policy": policy, "min_workers": low} | SCALING[policy])
            models[name] = ModelState(scaling, limits, POLICIES[policy], slots, Decision(low, "first"))
        self.autoscaler = Autoscaler(models)
        self.models = self.autoscaler.models

    def of(self, model: str) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.process.model == model]

    def observe(self, name: str) -> Observation:
        tasks = self.tasks[name]
        if tasks is None:
            return Observation(name, None, self.of(name), unix_s=self.now)
        started, late = self.started[name], self.started[name] // 2
        work_s, waited_s = tasks * TASK_S, float(tasks)
        queue = Queue(tasks, 0, 1, 1.0, work_s, TASK_S, tasks, tasks, started, late, waited_s, uptime_s=self.now)
        return Observation(name, queue, self.of(name), unix_s=self.now)

    @rule(seconds=st.floats(0.1, 40))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        result = self.autoscaler.tick({name: self.observe(name) for name in self.autoscaler.models}, self.now)
        self.check(result.decided)
        actions = result.plan.actions
        for action in actions:
            match action:
                case Kill(worker):
                    self.end(worker, -9)
                case Drain(worker):
                    old = self.replicas[worker]
                    self.replicas[worker] = replace(
                        old, stage=Stage.DRAINING, process=replace(old.process, drained_at=self.now)
                    )
                case Start(model, device):
                    self.number += 1
                    child = WorkerProcess(f"w{self.number}", model, device, self.number, self.now)
                    self.replicas[child.id] = Replica(child, Stage.STARTING)
        if not any(isinstance(action, Kill) for action in actions):  # their devices are free only now
            assert (
                self.autoscaler.tick(
                    {name: self.observe(name) for name in self.autoscaler.models}, self.now
                ).plan.actions
                == []
            ), "what was planned and done is not planned again"

    def check(self, decided: Sequence[DecisionEvent]) -> None:
        """Check the invariants of every decision."""
        for one in decided:
            model, seen, decision = self.models[one.model], one.observation, one.decision
            there = sum(replica.stage is not Stage.DRAINING for replica in self.of(one.model))
            assert seen.provisioned == there + model.lost, "each is counted once, starting or not"
            assert one.failure == ""
            if decision.valid and model.scaling.policy == "slo_work" and self.now < model.scaling.startup_hold_s:
                had = min(seen.provisioned, model.limits.max_workers)
                assert decision.desired >= had or one.decision.reason.startswith("nothing"), one

    def end(self, worker: str, status: int) -> None:
        child = self.replicas.pop(worker).process
        self.autoscaler.on_exit(Exit(child, self.now, status))

    @rule(index=st.integers(0, 20))
    def becomes_ready(self, index: int) -> None:
        starting = [r for r in self.replicas.values() if r.stage is Stage.STARTING]
        if starting:
            old = starting[index % len(starting)]
            child = replace(old.process, ready_at=self.now)
            self.replicas[child.id] = replace(old, stage=Stage.READY, process=child)

    @rule(index=st.integers(0, 20), status=st.sampled_from([1, 2, -9]))
    def worker_crashes(self, index: int, status: int) -> None:
        if self.replicas:
            self.end(list(self.replicas)[index % len(self.replicas)], status)

    @rule(index=st.integers(0, 20))
    def draining_worker_exits(self, index: int) -> None:
        draining = [r for r in self.replicas.values() if r.stage is Stage.DRAINING]
        if draining:
            self.end(draining[index % len(draining)].process.id, 0)

    @rule(name=st.sampled_from(NAMES), tasks=st.one_of(st.none(), st.integers(0, 60)))
    def load_changes(self, name: str, tasks: int | None) -> None:
        self.started[name] += self.tasks[name] or 0
        self.tasks[name] = tasks

    @rule()
    def controller_restarts(self) -> None:
        """The next controller restores the state."""
        saved = self.autoscaler.dump_state()
        self.autoscaler = Autoscaler(
            {
                name: ModelState(
                    old.scaling, old.limits, old.policy, old.slots, Decision(old.limits.min_workers, "first")
                )
                for name, old in self.models.items()
            }
        )
        self.models = self.autoscaler.models
        self.autoscaler.restore(saved, self.now)

    @rule()
    def settles_without_events(self) -> None:
        """From any state, after back-offs and timeouts, each model has its minimum, and a worker if it has work."""
        for _ in range(26):
            self.tick(5.0)
            for replica in list(self.replicas.values()):
                if replica.stage is Stage.STARTING:
                    self.becomes_ready(0)
                elif replica.stage is Stage.DRAINING:
                    self.end(replica.process.id, 0)
        # A model of unknown load keeps its workers, because the loss of a swap is unknown.
        is_load_known = None not in self.tasks.values()
        for name, model in self.models.items():
            min_ready = max(model.limits.min_workers, 1 if self.tasks[name] and is_load_known else 0)
            assert sum(r.stage is Stage.READY for r in self.of(name)) >= min_ready

    @invariant()
    def bounds_hold(self) -> None:
        held = Counter(replica.process.device for replica in self.replicas.values())
        assert all(held[device] <= 1 for device in held), "no device is given twice"
        for name, model in self.models.items():
            capacity = [r for r in self.of(name) if r.stage is not Stage.DRAINING]
            assert len(capacity) <= model.limits.max_workers
            assert model.limits.min_workers <= model.decision.desired <= model.limits.max_workers
            assert model.crashes.retry_at - self.now < 60.001
        for replica in self.replicas.values():
            if replica.process.drained_at is not None:
                # A tick kills workers after their timeout; ticks are up to 40 s apart.
                assert self.now - replica.process.drained_at <= 30 + DRAIN_GRACE_S + 40


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
