"""The autoscaler on random histories of several models on one pool: sizes, loads, crashes, faults."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler
from controller.autoscaler.model_state import ModelState
from controller.planning.device_pool import DevicePool
from controller.runtime.inventory import HostDevices, unplaced_models
from controller.types import Decision, Device, Drain, Kill, Observation, Queue, Replica, Stage, Start, WorkerLimits
from host.types import Exit, MemoryReading, WorkerProcess

NAMES = ("a", "b", "c")
#: Decides at every tick, with the number that the history gives.
SCALING = Scaling(interval_s=0.001, cold_start_s=10, policy="static", scale_to_zero={"idle_s": 1})
WORK_S = 2.0


class SharedPoolMachine(RuleBasedStateMachine):
    """Actions take effect at once and never fail. Each worker uses exactly the memory of its model."""

    @initialize(
        memory=st.lists(st.integers(10, 40), min_size=1, max_size=4),
        holds=st.lists(st.integers(2, 10), min_size=3, max_size=3),
        declared=st.lists(st.booleans(), min_size=3, max_size=3),
        min_workers=st.lists(st.integers(0, 1), min_size=3, max_size=3),
        share=st.booleans(),
    )
    def begin(
        self, memory: list[int], holds: list[int], declared: list[bool], min_workers: list[int], share: bool
    ) -> None:
        devices = [Device(f"sim:{n}", size) for n, size in enumerate(memory)]
        slots = [device.name for device in devices]
        self.machine = HostDevices(devices, 1)
        self.holds = dict(zip(NAMES, holds, strict=True))
        self.all_declared = all(declared)
        self.faulty = False
        self.now, self.number = 0.0, 0
        self.replicas: dict[str, Replica] = {}
        self.desired_workers = dict(zip(NAMES, min_workers, strict=True))
        self.tasks = dict.fromkeys(NAMES, 0)
        self.autoscaler = Autoscaler(
            {
                name: ModelState(
                    SCALING.model_copy(update={"min_workers": low}),
                    WorkerLimits(low, 6, 60, 30, 10),
                    self.policy_of(name),
                    slots,
                    Decision(low, "first"),
                    gpu_memory=self.holds[name] if known_models else None,
                )
                for name, known_models, low in zip(NAMES, declared, min_workers, strict=True)
            },
            DevicePool(devices, share=share, margin=0.0),
        )
        self.share = share

    def policy_of(self, name: str) -> Any:
        return lambda seen, scaling, limits, memory, now: (Decision(self.desired_workers[name], "desired"), None)

    def of(self, model: str) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.process.model == model]

    def observe(self, name: str) -> Observation:
        tasks = self.tasks[name]
        queue = Queue(
            tasks,
            0,
            1,
            1.0,
            tasks * WORK_S,
            WORK_S,
            arrivals_short_window=tasks,
            arrivals_long_window=tasks,
            uptime_s=900,
        )
        return Observation(name, queue, self.of(name))

    @rule(seconds=st.floats(0.1, 40))
    def tick(self, seconds: float) -> None:
        self.tick_and_execute(seconds)

    def tick_and_execute(self, seconds: float) -> int:
        """Return the number of drained workers."""
        self.now += seconds
        plan = self.autoscaler.tick({name: self.observe(name) for name in self.autoscaler.models}, self.now).plan
        for swap in plan.swaps:
            self.check_giver(swap.giver, {other.worker for other in plan.swaps})
        for action in plan.actions:
            match action:
                case Kill(worker):
                    self.end(worker, -9)
                case Drain(worker):
                    old = self.replicas[worker]
                    assert old.stage is not Stage.DRAINING
                    child = replace(old.process, drained_at=self.now)
                    self.replicas[worker] = replace(old, stage=Stage.DRAINING, process=child)
                case Start(model, device):
                    self.number += 1
                    child = WorkerProcess(f"w{self.number}", model, device, self.number, self.now)
                    self.replicas[child.id] = Replica(child, Stage.STARTING)
        if not any(isinstance(action, Kill) for action in plan.actions):
            again = self.autoscaler.tick({name: self.observe(name) for name in self.autoscaler.models}, self.now).plan
            # Only another swap may follow: a new worker lowers the value of the others of its model.
            swapped, givers = {swap.worker for swap in again.swaps}, Counter(swap.giver for swap in again.swaps)
            rest = [action for action in again.actions if not (isinstance(action, Drain) and action.id in swapped)]
            for start in [action for action in rest if isinstance(action, Start)]:
                if givers[start.model] > 0:  # the giver's worker starts on another device
                    givers[start.model] -= 1
                    rest.remove(start)
            assert rest == [], "what was planned and done is not planned again"
        return len(plan.swaps)

    def check_giver(self, giver: str, stopping: set[str]) -> None:
        left = [r for r in self.of(giver) if r.stage is not Stage.DRAINING and r.process.id not in stopping]
        had = [r for r in self.of(giver) if r.stage is not Stage.DRAINING]
        shifted = len(had) <= self.autoscaler.models[giver].limits.min_workers
        assert shifted or len(left) >= self.autoscaler.models[giver].limits.min_workers
        assert left or not self.tasks[giver], "the only one that has work stays"

    def end(self, worker: str, status: int) -> None:
        self.autoscaler.on_exit(Exit(self.replicas.pop(worker).process, self.now, status))

    def finish_loading(self, old: Replica) -> None:
        """The worker becomes ready, or it exits if its unknown need exceeds the memory.

        A known need fits beside all known ones. An unknown one that loads at the same time is what exceeds the memory.
        """
        device = next(device for device in self.machine.gpus if device.name == old.process.device)
        loading = [r for r in self.replicas.values() if r.stage is Stage.STARTING and r.process.device == device.name]
        unknown = [r.process.model for r in loading if r.process.model not in self.known_models()]
        if old.process.model in self.known_models():
            assert self.used_bytes(device) - sum(self.holds[model] for model in unknown) <= (device.memory or 0)
        elif self.used_bytes(device) > (device.memory or 0):
            self.end(old.process.id, 1)
            return
        child = replace(old.process, ready_at=self.now)
        held = self.holds[child.model]
        self.replicas[child.id] = replace(old, stage=Stage.READY, process=child, memory_bytes=held)

    @rule(index=st.integers(0, 20))
    def becomes_ready(self, index: int) -> None:
        starting = [r for r in self.replicas.values() if r.stage is Stage.STARTING]
        if starting:
            self.finish_loading(starting[index % len(starting)])

    @rule(index=st.integers(0, 20))
    def worker_crashes(self, index: int) -> None:
        if self.replicas:
            self.end(list(self.replicas)[index % len(self.replicas)], 1)

    @rule(index=st.integers(0, 20))
    def draining_worker_exits(self, index: int) -> None:
        draining = [r for r in self.replicas.values() if r.stage is Stage.DRAINING]
        if draining:
            self.end(draining[index % len(draining)].process.id, 0)

    @rule(name=st.sampled_from(NAMES), desired=st.integers(0, 6), tasks=st.integers(0, 60))
    def load_changes(self, name: str, desired: int, tasks: int) -> None:
        self.desired_workers[name] = max(desired, self.autoscaler.models[name].limits.min_workers)
        self.tasks[name] = tasks

    @rule(index=st.integers(0, 3), fault=st.sampled_from(["", "broken"]))
    def driver_reports(self, index: int, fault: str) -> None:
        device = self.machine.gpus[index % len(self.machine.gpus)]
        self.faulty = self.faulty or bool(fault)
        self.autoscaler.pool.update(
            [MemoryReading(device.name, device.memory, 0, fault=fault)], self.autoscaler.pool.occupied
        )

    @rule()
    def settles_without_events(self) -> None:
        """From any state, constant demands lead to a stable state in which every minimum is met."""
        swaps = [self.settle() for _ in range(40)]
        assert sum(swaps) <= 4 * len(self.machine.gpus) * len(NAMES)
        before = set(self.replicas)
        assert not any(self.settle() for _ in range(10)), "no swap comes after rest"
        assert set(self.replicas) == before, "nobody comes and goes"
        models = self.autoscaler.models
        below_minimum = [name for name in NAMES if len(self.of(name)) < models[name].limits.min_workers]
        faults = {device.name for device in self.autoscaler.pool.devices(self.now).values() if device.fault}
        if not self.faulty and self.all_declared and not faults:
            assert not below_minimum or unplaced_models(models, self.machine, share=self.share)
        for name in below_minimum:
            for device in self.machine.gpus:
                room = (device.memory or 0) - self.used_bytes(device)
                assert device.name in faults or room < self.holds[name], "there is room"

    def settle(self) -> int:
        swaps = self.tick_and_execute(10.0)
        for replica in list(self.replicas.values()):
            if replica.stage is Stage.STARTING:
                self.finish_loading(replica)
            elif replica.stage is Stage.DRAINING:
                self.end(replica.process.id, 0)
        return swaps

    def used_bytes(self, device: Device) -> int:
        """Return the memory that workers use, or will use when they have loaded."""
        workers = [replica.process for replica in self.replicas.values()]
        return sum(self.holds[child.model] for child in workers if child.device == device.name)

    @invariant()
    def known_needs_fit_in_memory(self) -> None:
        for device in self.machine.gpus:
            there = [replica for replica in self.replicas.values() if replica.process.device == device.name]
            if self.used_bytes(device) > (device.memory or 0):
                assert [r.process.model in self.known_models() for r in there if r.stage is not Stage.READY].count(
                    False
                ) == 1
            if not self.share:
                assert max(Counter(replica.process.model for replica in there).values(), default=0) <= 1

    def known_models(self) -> set[str]:
        return {
            name
            for name, model in self.autoscaler.models.items()
            if model.gpu_memory or name in self.autoscaler.pool.measured
        }

    @invariant()
    def worker_limits_hold(self) -> None:
        for name, model in self.autoscaler.models.items():
            staying = [replica for replica in self.of(name) if replica.stage is not Stage.DRAINING]
            assert len(staying) <= model.limits.max_workers


TestSharedPoolMachine = SharedPoolMachine.TestCase
TestSharedPoolMachine.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)
