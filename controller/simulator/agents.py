"""Scaling agents that a simulation can run: Muster's autoscaler, or a reference autoscaler with the same planner."""

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

#: Returns the current observation of a model by name.
Observe = Callable[[str], Observation]

#: Timeouts for simulated workers. They do not hang, so the timeouts never expire.
_TIMEOUT_S = 3600.0
_INITIAL = "initial number of workers"


class ScalingAgent(Protocol):
    """Decides the number of workers in a simulation. `now` is simulated time in seconds."""

    def tick(self, observe: Observe, now: float) -> Thought:
        """Decide and plan."""

    def next_tick_at(self) -> float:
        """Return the time of the next regular tick."""

    def is_urgent(self, waiting: Sequence[str], observe: Observe, now: float) -> bool:
        """Return whether a model of `waiting`, which have queued tasks, needs a tick now."""
        del waiting, observe, now
        return False

    def on_worker_exit(self, ended: Exit) -> None:
        """Record the end of a worker process."""

    def desired_workers(self, model: str) -> int:
        """Return the number of workers of the last decision."""


class ScalingTarget(NamedTuple):
    """A model to scale: its settings and the devices that its workers may use."""

    scaling: Scaling
    slots: Sequence[str]

    @property
    def limits(self) -> Limits:
        """The bounds on the number of workers; `max_workers: auto` allows every device."""
        max_workers = len(self.slots) if self.scaling.max_workers == "auto" else self.scaling.max_workers
        return Limits(self.scaling.min_workers, max_workers, _TIMEOUT_S, _TIMEOUT_S, _TIMEOUT_S)

    @property
    def initial_workers(self) -> int:
        initial = self.scaling.initial_workers
        return self.scaling.min_workers if initial is None else initial


class _SimAutoscaler(Brain):
    """Skips planning while nothing changes: only hanging workers need it then, and simulated workers do not hang."""

    def _plan(self, wanted: Sequence[Wanted], now: float) -> Plan:
        return Plan([], {}) if _are_settled(wanted) else super()._plan(wanted, now)


def _are_settled(targets: Sequence[Wanted]) -> bool:
    """Return whether every model has the desired number of workers, all with current settings."""
    return all(
        sum(replica.stage is not Stage.DRAINING for replica in target.seen.replicas) == target.decision.desired
        and not target.outdated
        for target in targets
    )


class MusterAgent(ScalingAgent):
    """The autoscaler of the live controller."""

    def __init__(self, targets: Mapping[str, ScalingTarget], policies: Mapping[str, Policy]) -> None:
        self.autoscaler = _SimAutoscaler(
            {
                name: Model(
                    target.scaling,
                    target.limits,
                    policies[name],
                    target.slots,
                    Decision(target.initial_workers, _INITIAL),
                )
                for name, target in targets.items()
            }
        )

    def tick(self, observe: Observe, now: float) -> Thought:
        return self.autoscaler.think(observe, now)

    def next_tick_at(self) -> float:
        return min(model.decide_at for model in self.autoscaler.models.values())

    def is_urgent(self, waiting: Sequence[str], observe: Observe, now: float) -> bool:
        models = self.autoscaler.models
        return any(
            wake(observe(name), model.scaling, model.limits, model.decision, model.decided_at, now)
            for name in waiting
            if (model := models[name])
        )

    def on_worker_exit(self, ended: Exit) -> None:
        self.autoscaler.died(ended)

    def desired_workers(self, model: str) -> int:
        return self.autoscaler.models[model].decision.desired


class SimObservation(NamedTuple):
    """Inputs of a reference autoscaler: counts of requests and of workers."""

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
        """Ready and starting workers, each counted once."""
        return self.ready + self.starting

    def clip(self, number: float) -> int:
        """Clamp the number to the bounds."""
        return int(min(max(number, self.limits.min_workers), self.limits.max_workers))


class ReferenceAutoscaler(Protocol):
    """A published autoscaler for one model. It may keep state."""

    interval_s: float

    def desired(self, observation: SimObservation, now: float) -> int:
        """Return the number of workers. Called every `interval_s`."""


@dataclass(slots=True)
class _ModelState:
    target: ScalingTarget
    autoscaler: ReferenceAutoscaler
    decision: Decision
    #: Crashed workers that are to be replaced.
    crashed: int = 0
    decide_at: float = 0.0


class ReferenceAgent(ScalingAgent):
    """Runs reference autoscalers with Muster's planner, so that placement and drain order equal the live server's.

    It replaces crashed workers immediately, as the platforms of these autoscalers do.
    """

    def __init__(
        self, targets: Mapping[str, ScalingTarget], make_autoscaler: Callable[[str], ReferenceAutoscaler]
    ) -> None:
        self._models = {
            name: _ModelState(target, make_autoscaler(name), Decision(target.initial_workers, _INITIAL))
            for name, target in targets.items()
        }

    def tick(self, observe: Observe, now: float) -> Thought:
        targets = []
        for name, model in self._models.items():
            observed = observe(name)
            model.crashed = still_owed(model.crashed, model.decision.desired, observed.replicas)
            if now >= model.decide_at and observed.queue is not None:
                model.decide_at = now + model.autoscaler.interval_s
                stages = [replica.stage for replica in observed.replicas]
                ready, starting = stages.count(Stage.READY), stages.count(Stage.STARTING) + model.crashed
                counts = SimObservation(
                    observed.queue.queued, observed.queue.running, ready, starting, model.target.limits
                )
                model.decision = Decision(model.autoscaler.desired(counts, now), type(model.autoscaler).__name__)
            targets.append(Wanted(observed, model.decision, model.target.limits, Crashes(), model.target.slots))
        return Thought(Plan([], {}) if _are_settled(targets) else make_plan(targets, now), [])

    def next_tick_at(self) -> float:
        return min(model.decide_at for model in self._models.values())

    def on_worker_exit(self, ended: Exit) -> None:
        self._models[ended.child.model].crashed += ended.child.drained_at is None

    def desired_workers(self, model: str) -> int:
        return self._models[model].decision.desired
