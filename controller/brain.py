"""All that a controller decides, without its hands: what is seen goes in, what is to be done comes out. Pure.

The live loop and the simulator both think with this, so that what was simulated is what runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.schema import Scaling
from controller.plan import Plan, Wanted, after_exit, forgive, make_plan, one_more, still_owed
from controller.policies import Policy
from controller.replica import Crashes, Decision, Exit, Limits, Observation
from controller.wake import wake


@dataclass
class Model:
    """What is remembered of a model between two looks."""

    scaling: Scaling
    limits: Limits
    policy: Policy
    #: Devices that its workers may have; a device that stands here twice may have two.
    slots: Sequence[str]
    decision: Decision
    #: The policy's own; None before its first decision.
    memory: Any = None
    crashes: Crashes = dataclasses.field(default_factory=Crashes)
    #: Workers that died unbidden since there were last as many as decided.
    lost: int = 0
    decide_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision as it was made."""

    model: str
    at: float
    #: Why now: the tick, or what could not wait for it.
    woken: str
    seen: Observation
    decision: Decision


@dataclass(frozen=True, slots=True)
class Thought:
    """What came of one look."""

    plan: Plan
    decided: Sequence[Decided]


class Brain:
    """Thinks for every model of one pool."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = dict(models)

    def think(self, look: Callable[[str], Observation], now: float) -> Thought:
        """Decide where it is time to, and plan. `look` gives what is seen of a model."""
        wanted, decided = [], []
        for name, model in self.models.items():
            seen = look(name)
            model.crashes = forgive(model.crashes, seen.replicas, now)
            model.lost = still_owed(model.lost, model.decision.desired, seen.replicas)
            seen = dataclasses.replace(seen, owed=model.lost)
            woken = wake(seen, model.scaling, model.limits, model.decide_at, now)
            if woken:
                model.decide_at = now + model.scaling.interval_s
                decided.append(self._decide(name, model, seen, woken, now))
            wanted.append(Wanted(seen, model.decision, model.limits, model.crashes, model.slots))
        return Thought(make_plan(wanted, now), decided)

    def _decide(self, name: str, model: Model, seen: Observation, woken: str, now: float) -> Decided:
        decision, model.memory = model.policy(seen, model.scaling, model.limits, model.memory, now)
        if decision.valid:
            model.decision = decision
        return Decided(name, now, woken, seen, decision)

    def died(self, ended: Exit) -> bool:
        """Take in that a worker has ended; whether it crashed."""
        model = self.models.get(ended.child.model)
        if model is None:
            return False
        model.crashes, crashed = after_exit(model.crashes, ended)
        model.lost += ended.child.drained_at is None
        return crashed

    def failed_to_start(self, name: str, now: float) -> None:
        """A worker of the model could not even be started."""
        self.models[name].crashes = one_more(self.models[name].crashes, now)
