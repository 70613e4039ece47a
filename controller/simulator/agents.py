"""Who decides in a simulation: the live controller's brain, or one of the known autoscalers. Both plan alike. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Brain, Model, Thought
from controller.autoscaler.triggers import wake
from controller.planning.plan import Plan, Wanted, make_plan, still_owed
from controller.policies import Policy
from controller.types import Crashes, Decision, Exit, Limits, Observation, Stage

Look = Callable[[str], Observation]

#: Patience with simulated workers. None of them hangs, so that it is never tried.
_PATIENCE_S = 3600.0


class Pilot(Protocol):
    """What a simulation asks."""

    def think(self, look: Look, now: float) -> Thought:
        """What to do, by what is seen now."""

    def due_at(self) -> float:
        """When to be asked next, if nothing happens before."""

    def stirs(self, waiting: Sequence[str], look: Look, now: float) -> bool:
        """Whether to be asked now, before the tick, for the models that have tasks waiting."""

    def died(self, ended: Exit) -> None:
        """A worker has ended."""

    def wanted(self, model: str) -> int:
        """How many workers the model should have, as decided last."""


class Role(NamedTuple):
    """One model's part in a pool."""

    scaling: Scaling
    #: Devices that its workers may have.
    slots: Sequence[str]

    @property
    def limits(self) -> Limits:
        """The model's bounds; without one of its own it may take every device."""
        most = len(self.slots) if self.scaling.max_workers == "auto" else self.scaling.max_workers
        return Limits(self.scaling.min_workers, most, _PATIENCE_S, _PATIENCE_S, _PATIENCE_S)

    @property
    def first(self) -> int:
        """Workers to begin with."""
        initial = self.scaling.initial_workers
        return self.scaling.min_workers if initial is None else initial


class _Brain(Brain):
    """Plans only where there is something to do: simulated workers do not hang, which only a plan would find."""

    def _plan(self, wanted: Sequence[Wanted], now: float) -> Plan:
        if all(map(_is_settled, wanted)):
            return Plan([], {})
        return super()._plan(wanted, now)


def _is_settled(own: Wanted) -> bool:
    staying = sum(replica.stage is not Stage.DRAINING for replica in own.seen.replicas)
    return staying == own.decision.desired and not own.outdated


class Thinker:
    """The brain of the live controller."""

    def __init__(self, roles: Mapping[str, Role], policies: Mapping[str, Policy]) -> None:
        """`policies` by model."""
        self.brain = _Brain(
            {
                name: Model(
                    role.scaling, role.limits, policies[name], role.slots, Decision(role.first, "to begin with")
                )
                for name, role in roles.items()
            }
        )

    def think(self, look: Look, now: float) -> Thought:
        """As the live controller does."""
        return self.brain.think(look, now)

    def due_at(self) -> float:
        """The next tick."""
        return min(model.decide_at for model in self.brain.models.values())

    def stirs(self, waiting: Sequence[str], look: Look, now: float) -> bool:
        """As the live controller finds out at every look."""
        models = self.brain.models
        return any(
            wake(look(name), one.scaling, one.limits, one.decision, one.decided_at, now)
            for name in waiting
            if (one := models[name])
        )

    def died(self, ended: Exit) -> None:
        """As the live controller does."""
        self.brain.died(ended)

    def wanted(self, model: str) -> int:
        """What the policy said last."""
        return self.brain.models[model].decision.desired


class Seen(NamedTuple):
    """All that one of the known autoscalers looks at."""

    queued: int
    running: int
    ready: int
    starting: int
    limits: Limits

    @property
    def total(self) -> int:
        """Requests in the system."""
        return self.queued + self.running

    @property
    def replicas(self) -> int:
        """Workers that are there or coming, each once."""
        return self.ready + self.starting

    def clip(self, number: float) -> int:
        """Within the bounds."""
        return int(min(max(number, self.limits.min_workers), self.limits.max_workers))


class Autoscaler(Protocol):
    """One of the known autoscalers, for one model. It may remember what it saw."""

    interval_s: float

    def desired(self, seen: Seen, now: float) -> int:
        """How many workers there should be. Asked every `interval_s`."""


@dataclass(slots=True)
class _Follower:
    role: Role
    autoscaler: Autoscaler
    decision: Decision
    lost: int = 0
    decide_at: float = 0.0


class Known:
    """Known autoscalers over our plan: which worker goes where and who leaves first is as in the live server.

    A worker that dies is replaced at once, as the platforms beneath them do.
    """

    def __init__(self, roles: Mapping[str, Role], make: Callable[[str], Autoscaler]) -> None:
        self._models = {
            name: _Follower(role, make(name), Decision(role.first, "to begin with")) for name, role in roles.items()
        }

    def think(self, look: Look, now: float) -> Thought:
        """Ask each autoscaler whose tick it is, and plan."""
        wanted = []
        for name, model in self._models.items():
            observed = look(name)
            model.lost = still_owed(model.lost, model.decision.desired, observed.replicas)
            if now >= model.decide_at and observed.queue is not None:
                model.decide_at = now + model.autoscaler.interval_s
                stages = [replica.stage for replica in observed.replicas]
                ready, starting = stages.count(Stage.READY), stages.count(Stage.STARTING) + model.lost
                queue, limits = observed.queue, model.role.limits
                desired = model.autoscaler.desired(Seen(queue.queued, queue.running, ready, starting, limits), now)
                model.decision = Decision(desired, type(model.autoscaler).__name__)
            wanted.append(Wanted(observed, model.decision, model.role.limits, Crashes(), model.role.slots))
        return Thought(Plan([], {}) if all(map(_is_settled, wanted)) else make_plan(wanted, now), [])

    def due_at(self) -> float:
        """The next tick."""
        return min(model.decide_at for model in self._models.values())

    def stirs(self, waiting: Sequence[str], look: Look, now: float) -> bool:
        """None of them has anything but its tick."""
        del waiting, look, now
        return False

    def died(self, ended: Exit) -> None:
        """One that was not told to go is owed."""
        self._models[ended.child.model].lost += ended.child.drained_at is None

    def wanted(self, model: str) -> int:
        """What was said last."""
        return self._models[model].decision.desired
