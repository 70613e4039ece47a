"""All that a controller decides, without its hands: what is seen goes in, what is to be done comes out. Pure.

The live loop and the simulator both think with this, so that what was simulated is what runs.
"""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from configs.scaling import Scaling
from controller.autoscaler.cold_start import Starts, expected_s
from controller.autoscaler.persistence import Kept, pack, unpack
from controller.autoscaler.triggers import wake
from controller.planning.allocation import load_of
from controller.planning.device_pool import Pool
from controller.planning.plan import Plan, Wanted, after_exit, forgive, make_plan, one_more, still_owed
from controller.planning.rolling_update import Rule, outdated, settled, surge
from controller.planning.standby import Keeping, as_serving, ready, with_spares
from controller.policies import Policy, bounds
from controller.types import Crashes, Decision, Exit, Limits, Observation


@dataclass
class Model:
    """What is remembered of a model between two looks."""

    scaling: Scaling
    limits: Limits
    policy: Policy
    #: Devices that its workers may have; a device that stands here twice may have two.
    slots: Sequence[str]
    decision: Decision
    #: Bytes of its device that a worker needs, as declared; None where that is to be found out.
    gpu_memory: int | None = None
    #: What its workers load: what they need is remembered under it. Default: its name.
    weights: str = ""
    memory: bounds.Memory = dataclasses.field(default_factory=bounds.Memory)
    crashes: Crashes = dataclasses.field(default_factory=Crashes)
    #: Workers that died unbidden since there were last as many as decided.
    lost: int = 0
    #: When the last decision was made.
    decided_at: float = -math.inf
    #: Whether any decision was ever valid.
    settled: bool = False
    starts: Starts = dataclasses.field(default_factory=Starts)
    #: Workers whose start is among these.
    learnt_of: frozenset[str] = frozenset()
    spare_crashes: Crashes = dataclasses.field(default_factory=Crashes)
    #: When its workers are to be replaced.
    rule: Rule = dataclasses.field(default_factory=Rule)
    #: What a person has ordered, in place of what its policy would decide.
    held: Decision | None = None

    def adapt(self, fresh: Model) -> None:
        """Go on with the settings of a fresh one, and decide anew."""
        if fresh.scaling.policy != self.scaling.policy:
            self.memory = dataclasses.replace(self.memory, own=None)
        self.scaling, self.limits, self.policy = fresh.scaling, fresh.limits, fresh.policy
        self.slots, self.gpu_memory, self.weights = fresh.slots, fresh.gpu_memory, fresh.weights
        desired = min(max(self.decision.desired, self.limits.min_workers), self.limits.max_workers)
        if desired != self.decision.desired:
            self.decision = dataclasses.replace(self.decision, desired=desired)
        # What failed may have failed for its settings.
        self.crashes, self.spare_crashes = Crashes(), Crashes()
        self.decided_at = -math.inf

    @property
    def decide_at(self) -> float:
        """When the next tick is."""
        return self.decided_at + self.scaling.interval_s

    @property
    def kind(self) -> str:
        """Of the devices that its workers may have: `cuda`, `cpu` or `sim`."""
        return next(iter(self.slots), "cpu").partition(":")[0]

    def learn(self, seen: Observation) -> None:
        """Take in what the starts of these workers took."""
        told = {replica.child.id: replica for replica in seen.replicas if replica.started_in_s > 0}
        for name in sorted(told.keys() - self.learnt_of):
            self.starts = self.starts.with_one(told[name].started_in_s, standby=told[name].from_standby)
        self.learnt_of = (self.learnt_of | told.keys()) & {replica.child.id for replica in seen.replicas}


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision as it was made."""

    model: str
    at: float
    #: Why now: the tick, or what could not wait for it.
    woken: str
    seen: Observation
    decision: Decision
    #: The traceback where the policy failed; then there is no decision.
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Thought:
    """What came of one look."""

    plan: Plan
    decided: Sequence[Decided]


class Brain:
    """Thinks for every model of one pool."""

    def __init__(self, models: Mapping[str, Model], pool: Pool | None = None) -> None:
        """Without a `pool` every device is well, and no memory is counted."""
        self.models = dict(models)
        self.pool = pool or Pool()
        #: Workers that had to make room for another model's, since this began.
        self.swaps = 0
        self._swapped: set[str] = set()
        #: Nothing is decided while it is so; what dies is replaced.
        self.paused = False
        self._now = 0.0

    def set_overrides(self, *, paused: bool, held: Mapping[str, Decision], rules: Mapping[str, Rule]) -> None:
        """Apply a pause, overridden decisions by model, and the rolling update rule of each model."""
        self.paused = paused
        for name, model in self.models.items():
            if model.held is not None and name not in held:
                model.decided_at = -math.inf
            model.held, model.rule = held.get(name), rules[name]

    def think(self, look: Callable[[str], Observation], now: float) -> Thought:
        """Decide where it is time to, and plan. `look` gives what is seen of a model."""
        self._now = now
        wanted, decided = [], []
        for name, model in self.models.items():
            seen = look(name)
            model.crashes = forgive(model.crashes, seen.replicas, now)
            model.spare_crashes = forgive(model.spare_crashes, [as_serving(child) for child in seen.spares], now)
            model.lost = still_owed(model.lost, model.decision.desired, seen.replicas)
            model.learn(seen)
            next_s = expected_s(model.starts, model.scaling, seen.cold_start_s, ready(seen.spares, model.kind))
            seen = dataclasses.replace(seen, owed=model.lost, cold_start_s=next_s)
            old = outdated(seen.replicas, model.rule, now)
            if made := self._decided(name, model, seen, old, now):
                decided.append(made)
            extra = surge(seen.replicas, model.decision.desired, old, model.crashes)
            wanted.append(
                Wanted(seen, model.decision, model.limits, model.crashes, model.slots, outdated=old, surge=extra)
            )
        plan = self._plan(wanted, now)
        return Thought(with_spares(plan, [self._keeping(own) for own in wanted], now), decided)

    def _plan(self, wanted: Sequence[Wanted], now: float) -> Plan:
        """What to do, with the devices as they are now and what workers need of them."""
        replicas = [replica for own in wanted for replica in own.seen.replicas]
        for own in wanted:
            self.pool.learn(self._weights(own.seen.model), own.seen.replicas)
        devices = self.pool.look(replicas, now)
        plan = make_plan([self._measured(own) for own in wanted], now, devices)
        new = {swap.worker for swap in plan.swaps} - self._swapped
        self.swaps += len(new)
        self._swapped = (self._swapped | new) & {replica.child.id for replica in replicas}
        return plan

    def _measured(self, own: Wanted) -> Wanted:
        """With what one worker needs, and what there is to do."""
        model = self.models[own.seen.model]
        need = self.pool.need(self._weights(own.seen.model), model.gpu_memory)
        return dataclasses.replace(own, need=need, share=self.pool.share, load=load_of(own.seen.queue, model.scaling))

    def _weights(self, name: str) -> str:
        return self.models[name].weights or name

    def _decided(
        self, name: str, model: Model, seen: Observation, old: Mapping[str, str], now: float
    ) -> Decided | None:
        """What is decided now, if anything: by order, or by the policy when it is time to."""
        if old:
            seen = dataclasses.replace(seen, replicas=settled(seen.replicas, model.decision.desired, old))
        if model.held is not None:
            if model.decision == model.held:
                return None
            model.decision, model.settled = model.held, True
            return Decided(name, now, "order", seen, model.held)
        if self.paused:
            self._keep(model, seen)
            return None
        woken = wake(seen, model.scaling, model.limits, model.decision, model.decided_at, now)
        if not woken:
            return None
        model.decided_at = now
        return self._decide(name, model, seen, woken, now)

    def _keep(self, model: Model, seen: Observation) -> None:
        """Where nothing has been decided yet, what an earlier controller left is kept, or a silence would end it."""
        if not model.settled:
            kept = min(max(model.decision.desired, seen.provisioned), model.limits.max_workers)
            model.decision = dataclasses.replace(model.decision, desired=kept)

    def _keeping(self, own: Wanted) -> Keeping:
        model = self.models[own.seen.model]
        # Their age does not matter: they serve from when they are called.
        rule = dataclasses.replace(model.rule, max_age_s=None)
        old = outdated([as_serving(child) for child in own.seen.spares], rule, self._now)
        return Keeping(own.seen, model.scaling.standby, model.kind, own.limits, model.spare_crashes, model.crashes, old)

    def _decide(self, name: str, model: Model, seen: Observation, woken: str, now: float) -> Decided:
        failure = ""
        try:
            decision, model.memory = bounds.decide(model.policy, seen, model.scaling, model.limits, model.memory, now)
        except Exception as error:  # a user's own policy may raise anything
            failure = traceback.format_exc()
            decision = Decision(seen.provisioned, f"the policy failed: {type(error).__name__}: {error}", valid=False)
        if decision.valid:
            model.decision, model.settled = decision, True
        else:
            self._keep(model, seen)
        return Decided(name, now, woken, seen, decision, failure)

    def remember(self) -> bytes:
        """What a successor should know, for `recall`."""
        kept = {name: Kept(model.scaling.policy, model.starts, model.memory) for name, model in self.models.items()}
        return pack(kept, self._now)

    def recall(self, saved: bytes, now: float, age_s: float = 0.0) -> None:
        """Go on from what a predecessor remembered `age_s` ago. What cannot be read is left."""
        for name, kept in unpack(saved, now, age_s).items():
            model = self.models.get(name)
            if model is not None:
                model.starts = kept.starts
                own = kept.memory.own if kept.policy == model.scaling.policy else None
                model.memory = dataclasses.replace(kept.memory, own=own)

    def died(self, ended: Exit) -> bool:
        """Take in that a worker has ended; whether it crashed."""
        model = self.models.get(ended.child.model)
        if model is None:
            return False
        if ended.child.spare:
            served = dataclasses.replace(ended, child=as_serving(ended.child).child)
            model.spare_crashes, crashed = after_exit(model.spare_crashes, served)
            return crashed
        model.crashes, crashed = after_exit(model.crashes, ended)
        model.lost += ended.child.drained_at is None
        if crashed:
            self.pool.crashed(ended)
        return crashed

    def failed_to_start(self, name: str, now: float, *, spare: bool = False) -> None:
        """A worker of the model, or a spare for it, could not even be started."""
        model = self.models[name]
        if spare:
            model.spare_crashes = one_more(model.spare_crashes, now)
        else:
            model.crashes = one_more(model.crashes, now)
