"""The autoscaler: observations go in, decisions and a plan come out. Pure.

The live loop and the simulator both think with this, so that what was simulated is what runs.
"""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.scaling import Scaling
from controller.autoscaler.cold_start import StartupTimes, expected_s
from controller.autoscaler.persistence import SavedModel, pack, unpack
from controller.autoscaler.triggers import find_trigger
from controller.planning.allocation import load_of
from controller.planning.crash_backoff import after_exit, cannot_start, decay, pending_replacements, record_crash
from controller.planning.device_pool import DevicePool
from controller.planning.plan import ModelDemand, Plan, make_plan
from controller.planning.rolling_update import UpdatePolicy, outdated, surge, without_surge
from controller.planning.standby import StandbyTarget, as_replica, count_ready, with_standby
from controller.policies import Policy, bounds
from controller.types import CrashBackoff, Decision, Exit, Observation, WorkerLimits


@dataclass
class ModelState:
    """A model's state between two ticks."""

    scaling: Scaling
    limits: WorkerLimits
    policy: Policy
    #: Devices that its workers may use; a device that is listed twice may have two.
    slots: Sequence[str]
    decision: Decision
    #: Declared bytes of a device that a worker needs; None: measured.
    gpu_memory: int | None = None
    #: Name of its weights, under which their memory is measured. Default: the model's name.
    weights: str = ""
    memory: bounds.PolicyMemory = dataclasses.field(default_factory=bounds.PolicyMemory)
    crashes: CrashBackoff = dataclasses.field(default_factory=CrashBackoff)
    #: Workers that died since the desired number was last reached.
    lost: int = 0
    #: When the last decision was made.
    decided_at: float = -math.inf
    #: Whether any decision was ever valid.
    has_decided: bool = False
    starts: StartupTimes = dataclasses.field(default_factory=StartupTimes)
    #: Workers whose start is among these.
    recorded_starts: frozenset[str] = frozenset()
    standby_crashes: CrashBackoff = dataclasses.field(default_factory=CrashBackoff)
    #: When its workers are to be replaced.
    update_policy: UpdatePolicy = dataclasses.field(default_factory=UpdatePolicy)
    #: A manual number of workers, in place of the policy's decision.
    override: Decision | None = None

    def update_settings(self, fresh: ModelState) -> None:
        """Take over new settings, and decide again."""
        if fresh.scaling.policy != self.scaling.policy:
            self.memory = dataclasses.replace(self.memory, own=None)
        self.scaling, self.limits, self.policy = fresh.scaling, fresh.limits, fresh.policy
        self.slots, self.gpu_memory, self.weights = fresh.slots, fresh.gpu_memory, fresh.weights
        desired = min(max(self.decision.desired, self.limits.min_workers), self.limits.max_workers)
        if desired != self.decision.desired:
            self.decision = dataclasses.replace(self.decision, desired=desired)
        # Crashes may have been caused by the old settings.
        self.crashes, self.standby_crashes = CrashBackoff(), CrashBackoff()
        self.decided_at = -math.inf

    @property
    def next_decision_at(self) -> float:
        """Return the time of the next decision."""
        return self.decided_at + self.scaling.interval_s

    @property
    def kind(self) -> str:
        """Return the kind of its devices: `cuda`, `cpu` or `sim`."""
        return next(iter(self.slots), "cpu").partition(":")[0]

    def learn(self, observation: Observation) -> None:
        """Record the start-up times of these workers."""
        told = {replica.process.id: replica for replica in observation.replicas if replica.started_in_s > 0}
        for name in sorted(told.keys() - self.recorded_starts):
            self.starts = self.starts.with_sample(told[name].started_in_s, standby=told[name].from_standby)
        self.recorded_starts = (self.recorded_starts | told.keys()) & {
            replica.process.id for replica in observation.replicas
        }


@dataclass(frozen=True, slots=True)
class DecisionEvent:
    """One decision with its observation and trigger."""

    model: str
    at: float
    #: The tick, or the reason to decide before it.
    trigger: str
    observation: Observation
    decision: Decision
    #: The traceback where the policy failed; then there is no decision.
    failure: str = ""


@dataclass(frozen=True, slots=True)
class TickResult:
    """Decisions and the plan of one tick."""

    plan: Plan
    decided: Sequence[DecisionEvent]


class Autoscaler:
    """Decides and plans for all models of one device pool."""

    def __init__(self, models: Mapping[str, ModelState], pool: DevicePool | None = None) -> None:
        """Without a `pool` every device is healthy, and memory is not counted."""
        self.models = dict(models)
        self.pool = pool or DevicePool()
        #: Number of swaps so far.
        self.swaps = 0
        self._swapped: set[str] = set()
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

    def tick(self, observations: Mapping[str, Observation], now: float) -> TickResult:
        """Decide where a decision is due, and plan. `observations` has every model."""
        self._now = now
        demands, decided = [], []
        for name, model in self.models.items():
            observation = observations[name]
            model.crashes = decay(model.crashes, observation.replicas, now)
            model.standby_crashes = decay(
                model.standby_crashes, [as_replica(child) for child in observation.spares], now
            )
            model.lost = pending_replacements(model.lost, model.decision.desired, observation.replicas)
            model.learn(observation)
            next_s = expected_s(
                model.starts, model.scaling, observation.cold_start_s, count_ready(observation.spares, model.kind)
            )
            observation = dataclasses.replace(observation, owed=model.lost, cold_start_s=next_s)
            old = outdated(observation.replicas, model.update_policy, now)
            if made := self._decide_if_due(name, model, observation, old, now):
                decided.append(made)
            extra = surge(observation.replicas, model.decision.desired, old, model.crashes)
            demands.append(
                ModelDemand(
                    observation, model.decision, model.limits, model.crashes, model.slots, outdated=old, surge=extra
                )
            )
        plan = self._plan(demands, now)
        return TickResult(with_standby(plan, [self._standby_target(demand) for demand in demands], now), decided)

    def _plan(self, demands: Sequence[ModelDemand], now: float) -> Plan:
        """Plan on the devices as they are now."""
        replicas = [replica for demand in demands for replica in demand.observation.replicas]
        for demand in demands:
            self.pool.learn(self._weights(demand.observation.model), demand.observation.replicas)
        devices = self.pool.usable(replicas, now)
        plan = make_plan([self._with_needs(demand) for demand in demands], now, devices)
        new = {swap.worker for swap in plan.swaps} - self._swapped
        self.swaps += len(new)
        self._swapped = (self._swapped | new) & {replica.process.id for replica in replicas}
        return plan

    def _with_needs(self, demand: ModelDemand) -> ModelDemand:
        """Return the model's demand."""
        model = self.models[demand.observation.model]
        need = self.pool.need(self._weights(demand.observation.model), model.gpu_memory)
        return dataclasses.replace(
            demand, need=need, share=self.pool.share, load=load_of(demand.observation.queue, model.scaling)
        )

    def _weights(self, name: str) -> str:
        return self.models[name].weights or name

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
            return DecisionEvent(name, now, "order", observation, model.override)
        if self.paused:
            self._keep_existing(model, observation)
            return None
        trigger = find_trigger(observation, model.scaling, model.limits, model.decision, model.decided_at, now)
        if not trigger:
            return None
        model.decided_at = now
        return self._decide(name, model, observation, trigger, now)

    def _keep_existing(self, model: ModelState, observation: Observation) -> None:
        """Before the first decision, keep the workers of an earlier controller."""
        if not model.has_decided:
            saved = min(max(model.decision.desired, observation.provisioned), model.limits.max_workers)
            model.decision = dataclasses.replace(model.decision, desired=saved)

    def _standby_target(self, demand: ModelDemand) -> StandbyTarget:
        model = self.models[demand.observation.model]
        # Their age does not count: they serve from their activation.
        update_policy = dataclasses.replace(model.update_policy, max_age_s=None)
        old = outdated([as_replica(child) for child in demand.observation.spares], update_policy, self._now)
        return StandbyTarget(
            demand.observation,
            model.scaling.standby,
            model.kind,
            demand.limits,
            model.standby_crashes,
            model.crashes,
            old,
        )

    def _decide(
        self, name: str, model: ModelState, observation: Observation, trigger: str, now: float
    ) -> DecisionEvent:
        failure = ""
        try:
            decision, model.memory = bounds.decide(
                model.policy, observation, model.scaling, model.limits, model.memory, now
            )
        except Exception as error:  # a user's own policy may raise anything
            failure = traceback.format_exc()
            decision = Decision(
                observation.provisioned, f"the policy failed: {type(error).__name__}: {error}", valid=False
            )
        if decision.valid:
            model.decision, model.has_decided = decision, True
        else:
            self._keep_existing(model, observation)
        return DecisionEvent(name, now, trigger, observation, decision, failure)

    def dump_state(self) -> bytes:
        """Return the state for the next controller, for `restore`."""
        saved = {
            name: SavedModel(model.scaling.policy, model.starts, model.memory) for name, model in self.models.items()
        }
        return pack(saved, self._now)

    def restore(self, saved: bytes, now: float, age_s: float = 0.0) -> None:
        """Restore the state that was saved `age_s` ago. Unreadable parts are skipped."""
        for name, part in unpack(saved, now, age_s).items():
            model = self.models.get(name)
            if model is not None:
                model.starts = part.starts
                own = part.memory.own if part.policy == model.scaling.policy else None
                model.memory = dataclasses.replace(part.memory, own=own)

    def on_exit(self, ended: Exit) -> bool:
        """Record a worker's exit; return whether it crashed."""
        model = self.models.get(ended.process.model)
        if model is None:
            return False
        if ended.process.spare:
            served = dataclasses.replace(ended, process=as_replica(ended.process).process)
            model.standby_crashes, crashed = after_exit(model.standby_crashes, served)
            return crashed
        model.crashes, crashed = after_exit(model.crashes, ended)
        model.lost += ended.process.drained_at is None
        if crashed:
            self.pool.on_crash(ended)
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
