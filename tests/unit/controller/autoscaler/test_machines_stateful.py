"""The autoscaler on random histories of machines that join, fall silent, restart, return and are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from configs.devices import machine_of
from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler
from controller.autoscaler.model_state import ModelState
from controller.planning.device_pool import DevicePool
from controller.planning.machines import Machine
from controller.types import (
    Activate,
    Decision,
    Device,
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

MODELS = ("m", "n")
BOXES = ("a", "b", "c")
SCALING = Scaling(interval_s=0.001, cold_start_s=10, policy="static", standby=1)
SIZE = 40


class MachinesMachine(RuleBasedStateMachine):
    """The controller's machine has one device, the others have two. What runs on a silent machine goes on there."""

    @initialize(weights=st.lists(st.sampled_from(["", "m", "mn"]), min_size=3, max_size=3))
    def begin(self, weights: list[str]) -> None:
        self.now, self.number = 0.0, 0
        self.machines = {
            name: Machine(name, [Device(f"{name}/sim:{n}", SIZE) for n in range(2)], frozenset(models), 0.0)
            for name, models in zip(BOXES, weights, strict=True)
        }
        self.joined = {"a"}
        self.desired = dict.fromkeys(MODELS, 2)
        self.processes: dict[str, WorkerProcess] = {}
        self.autoscaler = Autoscaler(
            {
                name: ModelState(
                    SCALING, WorkerLimits(0, 8, 60, 30, 10), self.policy_of(name), self.slots, Decision(1, "x"), SIZE
                )
                for name in MODELS
            },
            DevicePool([Device("sim:0", SIZE)], margin=0.0),
        )

    def policy_of(self, name: str) -> Any:
        return lambda seen, scaling, limits, memory, now: (Decision(self.desired[name], "desired"), None)

    @property
    def slots(self) -> list[str]:
        return ["sim:0", *(device.name for name in sorted(self.joined) for device in self.machines[name].devices)]

    @property
    def present(self) -> list[Machine]:
        return [
            machine if machine.silent else replace(machine, last_report_at=self.now)
            for name, machine in self.machines.items()
            if name in self.joined
        ]

    @property
    def unused(self) -> set[str]:
        return {m.name for m in self.machines.values() if m.silent or m.refused_reason or m.name not in self.joined}

    def observe(self, model: str) -> Observation:
        own = [child for child in self.processes.values() if child.model == model]
        replicas = [
            Replica(
                child,
                Stage.DRAINING if child.drained_at else Stage.READY if child.ready_at else Stage.STARTING,
                started_in_s=0.0 if child.ready_at is None else 10.0,
            )
            for child in own
            if not child.spare
        ]
        return Observation(model, Queue(4, 0, uptime_s=900), replicas, spares=[child for child in own if child.spare])

    @rule(seconds=st.floats(0.1, 30))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        for state in self.autoscaler.models.values():
            state.slots = self.slots
        silent = {machine.name for machine in self.present if machine.silent}
        unused = self.unused
        plan = self.autoscaler.tick({name: self.observe(name) for name in MODELS}, self.now, self.present).plan
        for action in plan.actions:
            match action:
                case Kill(worker) | Drain(worker):
                    child = self.processes[worker]
                    assert machine_of(child.device) not in silent, "no order reaches it"
                    self.processes[worker] = replace(child, drained_at=self.now)
                    if isinstance(action, Kill):
                        self.end(worker, -9)
                case Start(model, device, standby=standby):
                    assert machine_of(device) not in unused
                    self.start(model, device, spare=standby)
                case Activate(worker, _, device):
                    child = self.processes[worker]
                    assert child.device == device.partition(":")[0], "it stays on its machine"
                    assert machine_of(device) not in unused
                    self.processes[worker] = replace(child, device=device, spare=False, started_at=self.now)

    def start(self, model: str, device: str, *, spare: bool = False) -> None:
        self.number += 1
        name = f"w{self.number}"
        self.processes[name] = WorkerProcess(name, model, device, self.number, self.now, spare=spare)

    def end(self, worker: str, status: int | None) -> None:
        self.autoscaler.on_exit(Exit(self.processes.pop(worker), self.now, status))

    @rule()
    def all_reachable_workers_load_or_leave(self) -> None:
        for name, child in list(self.processes.items()):
            if machine_of(child.device) in self.unused:
                continue
            if child.drained_at is not None:
                self.end(name, 0)
            elif child.spare:
                self.processes[name] = replace(child, loaded_at=child.loaded_at or self.now)
            else:
                self.processes[name] = replace(child, ready_at=child.ready_at or self.now)

    @rule(name=st.sampled_from(BOXES))
    def machine_joins(self, name: str) -> None:
        self.joined.add(name)

    @rule(name=st.sampled_from(BOXES), reason=st.sampled_from(["", "another version"]))
    def machine_is_refused(self, name: str, reason: str) -> None:
        self.machines[name] = replace(self.machines[name], refused_reason=reason)

    @rule(name=st.sampled_from(BOXES))
    def machine_falls_silent(self, name: str) -> None:
        if name in self.joined:
            self.machines[name] = replace(self.machines[name], silent=True)

    @rule(name=st.sampled_from(BOXES), restarted=st.booleans())
    def machine_returns(self, name: str, restarted: bool) -> None:
        """Its workers go on, or the machine was restarted and they have ended."""
        if self.machines[name].silent:
            self.tick(0.1)
            self.machines[name] = replace(self.machines[name], silent=False)
            if restarted:
                for worker in [w for w, child in self.processes.items() if machine_of(child.device) == name]:
                    self.end(worker, None)

    @rule(name=st.sampled_from(BOXES))
    def machine_restarts(self, name: str) -> None:
        self.machine_falls_silent(name)
        self.machine_returns(name, True)

    @rule(model=st.sampled_from(MODELS), workers=st.integers(1, 4))
    def decision_changes(self, model: str, workers: int) -> None:
        self.desired[model] = workers

    @rule()
    def settles_without_events(self) -> None:
        """From any state, the models get their workers as far as there is room, and surplus ones leave."""
        for _ in range(30):
            self.all_reachable_workers_load_or_leave()
            self.tick(60.0)
        self.all_reachable_workers_load_or_leave()
        # A refused machine keeps the workers it has, so they count as well.
        silent = {machine.name for machine in self.present if machine.silent}
        active = [c for c in self.processes.values() if not c.spare and machine_of(c.device) not in silent]
        counts = {name: sum(child.model == name for child in active) for name in MODELS}
        assert all(counts[name] <= self.desired[name] for name in MODELS)
        used = {child.device for child in active}
        free = [slot for slot in self.slots if slot not in used and machine_of(slot) not in self.unused]
        assert not free or counts == self.desired

    @invariant()
    def failure_of_a_machine_is_no_crash(self) -> None:
        for model in self.autoscaler.models.values():
            assert model.crashes.count == 0
            assert model.standby_crashes.count == 0


TestMachines = MachinesMachine.TestCase
TestMachines.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
