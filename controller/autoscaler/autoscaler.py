"""The autoscaler: it turns observations into decisions and a plan. Pure.

The live control loop and the simulator use the same code, so a simulation shows what will run.
"""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.devices import machine_of
from configs.text import exception_line
from controller.autoscaler.model_state import ModelState
from controller.autoscaler.persistence import SavedModel, pack, unpack
from controller.autoscaler.triggers import early_trigger
from controller.planning.crash_backoff import after_exit, cannot_start, crash_kind, record_crash
from controller.planning.device_pool import DevicePool
from controller.planning.machine_health import MachineHealth
from controller.planning.machines import Machine, model_machines, preferred_machines
from controller.planning.plan import ModelDemand, Plan, make_plan
from controller.planning.rolling_update import UpdatePolicy, outdated, surge, without_surge
from controller.planning.standby import StandbyTarget, as_replica, with_standby
from controller.policies import Policy, bounds
from controller.types import Decision, Kill, Observation
from host.types import Exit


@dataclass(frozen=True, slots=True)
class DecisionEvent:
    """One decision with its observation and trigger."""

    model: str
    at: float
    #: The tick, or the reason to decide before it.
    trigger: str
    observation: Observation
    decision: Decision
    #: The traceback where the policy failed; then only the bounds apply.
    failure: str = ""


@dataclass(frozen=True, slots=True)
class TickResult:
    """Decisions and the plan of one tick."""

    plan: Plan
    decided: Sequence[DecisionEvent]
    #: The models as they were planned.
    demands: Sequence[ModelDemand] = ()


class Autoscaler:
    """Decides and plans for all models of one device pool."""

    def __init__(self, models: Mapping[str, ModelState], pool: DevicePool | None = None) -> None:
        """Without a `pool` every device is healthy, and memory is not counted."""
        self.models = dict(models)
        self.pool = pool or DevicePool()
        #: The other machines, and their failures.
        self.machines = MachineHealth()
        #: Number of swaps so far.
        self.swaps = 0
        self._swapped: set[str] = set()
        #: Workers that a plan has killed.
        self._killed: set[str] = set()
        #: Whether decisions are paused; dead workers are still replaced.
        self.paused = False
        self._now = 0.0

    def set_overrides(
        self, *, paused: bool, overrides: Mapping[str, Decision], update_policies: Mapping[str, UpdatePolicy]
    ) -> None:
        """Apply a pause, overridden decisions by model, and the rolling update rule of each model."""
        self.paused = paused
        for name, model in self.models.items():
            if model.override is not None and name not in overrides:
                model.decided_at = -math.inf
            model.override, model.update_policy = overrides.get(name), update_policies[name]

    def tick(self, observations: Mapping[str, Observation], now: float, machines: Sequence[Machine] = ()) -> TickResult:
        """Decide where a decision is due, and plan. `observations` has every model, `machines` all other machines.

        Workers on silent machines are no capacity: others start in their place.
        """
        self._now = now
        demands, decided = [], []
        faults: Mapping[str, str] = {}
        if machines or self.machines.reported:  # other machines than the controller's own
            self.machines.update(machines, now)
            faults = self.machines.faults(now)
            self.pool.set_machines(machines, faults)
        silent = frozenset(machine.name for machine in machines if machine.silent)
        observations = {name: model.observe(observations[name], now, silent) for name, model in self.models.items()}
        # Models may share weights: all are measured before any need is computed.
        workers = [(m.weights or name, each) for name, m in self.models.items() for each in observations[name].replicas]
        self.pool.observe(workers, now)
        for name, model in self.models.items():
            observation = observations[name]
            old = outdated(observation.replicas, model.update_policy, now)
            if made := self._decide_if_due(name, model, observation, old, now):
                decided.append(made)
            demands.append(
                ModelDemand(
                    observation,
                    model.decision,
                    model.limits,
                    model.crashes,
                    model.slots,
                    self.pool.need(model.weights or name, model.gpu_memory),
                    self.pool.share,
                    model.scaling,
                    old,
                    surge(observation.replicas, model.decision.desired, old, model.crashes) if old else 0,
                    preferred_machines(name, observation.spares, machines) if machines else (),
                )
            )
        plan = self._plan(demands, now)
        for name, device in plan.next_devices.items():
            self.models[name].next_machine = machine_of(device)
        if any(model.scaling.standby or observations[name].spares for name, model in self.models.items()):
            plan = with_standby(plan, [self._standby_target(demand, faults) for demand in demands], now)
        return TickResult(plan, decided, demands)

    def _plan(self, demands: Sequence[ModelDemand], now: float) -> Plan:
        """Plan on the devices as they are now."""
        replicas = [replica for demand in demands for replica in demand.observation.replicas]
        if self.machines.reported:
            self.machines.observe(replicas, now)
        plan = make_plan(demands, now, self.pool.devices(now))
        new = {swap.worker for swap in plan.swaps} - self._swapped
        self.swaps += len(new)
        present = {replica.process.id for replica in replicas}
        self._swapped = (self._swapped | new) & present
        self._killed = (self._killed & present) | {each.id for each in plan.actions if isinstance(each, Kill)}
        return plan

    def _decide_if_due(
        self, name: str, model: ModelState, observation: Observation, old: Mapping[str, str], now: float
    ) -> DecisionEvent | None:
        """Return a decision if one is due: from an override or from the policy."""
        if old:
            observation = dataclasses.replace(
                observation, replicas=without_surge(observation.replicas, model.decision.desired, old)
            )
        if model.override is not None:
            if model.decision == model.override:
                return None
            model.decision, model.has_decided = model.override, True
            return DecisionEvent(name, now, "override", observation, model.override)
        if self.paused:
            self._keep_existing(model, observation)
            return None
        trigger = "tick"
        if now < model.decided_at + model.scaling.interval_s:
            trigger = early_trigger(observation, model.scaling, model.limits, model.decision, model.decided_at, now)
        if not trigger:
            return None
        model.decided_at, failure = now, ""
        try:
            decision, model.memory = bounds.decide(
                model.policy, observation, model.scaling, model.limits, model.memory, now
            )
        except Exception as error:  # a user's own policy may raise anything
            failure = traceback.format_exc()
            reason = f"the policy failed: {exception_line(error)}"
            decision, model.memory = bounds.decide(
                _no_decision(reason), observation, model.scaling, model.limits, model.memory, now
            )
        if decision.valid:
            model.decision, model.has_decided = decision, True
        else:
            self._keep_existing(model, observation)
        return DecisionEvent(name, now, trigger, observation, decision, failure)

    def _keep_existing(self, model: ModelState, observation: Observation) -> None:
        """Before the first decision, keep the workers of an earlier controller."""
        if not model.has_decided:
            saved = min(max(model.decision.desired, observation.provisioned), model.limits.max_workers)
            model.decision = dataclasses.replace(model.decision, desired=saved)

    def _standby_target(self, demand: ModelDemand, machine_faults: Mapping[str, str]) -> StandbyTarget:
        model = self.models[demand.observation.model]
        # Their age does not count: they serve from their activation.
        update_policy = dataclasses.replace(model.update_policy, max_age_s=None)
        old = outdated([as_replica(child) for child in demand.observation.spares], update_policy, self._now)
        return StandbyTarget(
            demand.observation,
            model.scaling.standby,
            model.kinds,
            demand.limits,
            model.standby_crashes,
            model.crashes,
            old,
            machine_faults.keys(),
            model_machines(demand.observation.model, self.machines.reported),
        )

    def dump_state(self) -> bytes:
        """Return the state for the next controller, for `restore`."""
        saved = {
            name: SavedModel(model.scaling.policy, model.starts, model.memory, model.machine_starts)
            for name, model in self.models.items()
        }
        return pack(saved, self._now)

    def restore(self, saved: bytes, now: float, age_s: float = 0.0) -> None:
        """Restore the state that was saved `age_s` ago. Unreadable parts are skipped."""
        for name, part in unpack(saved, now, age_s).items():
            model = self.models.get(name)
            if model is not None:
                model.starts, model.machine_starts = part.starts, dict(part.machine_starts)
                own = part.memory.own if part.policy == model.scaling.policy else None
                model.memory = dataclasses.replace(part.memory, own=own)

    def on_exit(self, ended: Exit) -> bool:
        """Record a worker's exit; return whether it crashed."""
        model = self.models.get(ended.process.model)
        if model is None:
            return False
        if self.machines.ended_with_machine(ended):
            ended = dataclasses.replace(ended, machine_failed=True)
        if ended.process.spare:
            served = dataclasses.replace(ended, process=as_replica(ended.process).process)
            model.standby_crashes, crashed = after_exit(model.standby_crashes, served)
            return crashed
        model.crashes, crashed = after_exit(model.crashes, ended)
        # A worker of a silent machine already counts as lost.
        model.lost += ended.process.drained_at is None and ended.process.id not in model.unreachable
        if crashed:
            model.crashes_by_kind[crash_kind(ended, is_ordered=ended.process.id in self._killed)] += 1
            self.pool.on_crash(ended)
            self.machines.on_crash(ended.process, ended.at)
        return crashed

    def cannot_start(self, name: str, observation: Observation) -> str:
        """Return why no worker of the model can start, as of the last tick; empty if one serves or may soon."""
        model = self.models[name]
        return cannot_start(model.crashes, model.decision.desired, observation.replicas, self._now)

    def on_start_failed(self, name: str, now: float, reason: str, *, spare: bool = False) -> None:
        """Record that a worker, or a standby worker, could not be started."""
        model = self.models[name]
        if spare:
            model.standby_crashes = record_crash(model.standby_crashes, now)
        else:
            model.crashes = record_crash(model.crashes, now, reason)
            model.crashes_by_kind["start_failed"] += 1


def _no_decision(reason: str) -> Policy:
    """Return a policy that leaves the number to the bounds."""
    return lambda observation, _scaling, _limits, memory, _now: (
        Decision(observation.provisioned, reason, valid=False),
        memory,
    )
