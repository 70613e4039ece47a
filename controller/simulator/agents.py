"""Scaling agents that a simulation can run: Muster's autoscaler, or a reference autoscaler with the same planner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler, TickResult
from controller.autoscaler.model_state import ModelState
from controller.autoscaler.triggers import early_trigger
from controller.planning.crash_backoff import pending_replacements
from controller.planning.machines import Machine
from controller.planning.plan import ModelDemand, Plan, make_plan
from controller.policies import Policy
from controller.types import CrashBackoff, Decision, Observation, Stage, WorkerLimits
from host.types import Exit

#: Returns the current observation of a model by name.
Observe = Callable[[str], Observation]

#: Timeouts for simulated workers. They do not hang, so the timeouts never expire.
_TIMEOUT_S = 3600.0
_INITIAL = "initial number of workers"


class ScalingAgent(Protocol):
    """Decides the number of workers in a simulation. `now` is simulated time in seconds."""

    def tick(self, observe: Observe, now: float) -> TickResult:
        """Decide and plan."""

    def observe_machines(self, machines: Sequence[Machine]) -> None:
        """Receive the state of all machines before a tick."""
        del machines

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
    def limits(self) -> WorkerLimits:
        """The bounds on the number of workers; `max_workers: auto` allows every device."""
        max_workers = len(self.slots) if self.scaling.max_workers == "auto" else self.scaling.max_workers
        return WorkerLimits(self.scaling.min_workers, max_workers, _TIMEOUT_S, _TIMEOUT_S, _TIMEOUT_S)

    @property
    def initial_workers(self) -> int:
        initial = self.scaling.initial_workers
        return self.scaling.min_workers if initial is None else initial


class _SimAutoscaler(Autoscaler):
    """Skips planning while nothing changes: only hanging workers need it then, and simulated workers do not hang."""

    def _plan(self, demands: Sequence[ModelDemand], now: float) -> Plan:
        return Plan([], {}) if _are_settled(demands) else super()._plan(demands, now)


def _are_settled(targets: Sequence[ModelDemand]) -> bool:
    """Return whether every model has the desired number of workers, all with current settings."""
    return all(
        sum(replica.stage is not Stage.DRAINING for replica in target.observation.replicas) == target.decision.desired
        and not target.outdated
        for target in targets
    )


class MusterAgent(ScalingAgent):
    """The autoscaler of the live controller."""

    def __init__(self, targets: Mapping[str, ScalingTarget], policies: Mapping[str, Policy]) -> None:
        self.autoscaler = _SimAutoscaler(
            {
                name: ModelState(
                    target.scaling,
                    target.limits,
                    policies[name],
                    target.slots,
                    Decision(target.initial_workers, _INITIAL),
                )
                for name, target in targets.items()
            }
        )
        self._machines: Sequence[Machine] = ()

    def observe_machines(self, machines: Sequence[Machine]) -> None:
        self._machines = machines

    def tick(self, observe: Observe, now: float) -> TickResult:
        return self.autoscaler.tick({name: observe(name) for name in self.autoscaler.models}, now, self._machines)

    def next_tick_at(self) -> float:
        return min(model.next_decision_at for model in self.autoscaler.models.values())

    def is_urgent(self, waiting: Sequence[str], observe: Observe, now: float) -> bool:
        models = self.autoscaler.models
        return any(
            now >= model.next_decision_at
            or early_trigger(observe(name), model.scaling, model.limits, model.decision, model.decided_at, now)
            for name in waiting
            if (model := models[name])
        )

    def on_worker_exit(self, ended: Exit) -> None:
        self.autoscaler.on_exit(ended)

    def desired_workers(self, model: str) -> int:
        return self.autoscaler.models[model].decision.desired


class SimObservation(NamedTuple):
    """Inputs of a reference autoscaler: counts of requests and of workers."""

    queued: int
    running: int
    ready: int
    starting: int
    limits: WorkerLimits

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
    next_decision_at: float = 0.0


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

    def tick(self, observe: Observe, now: float) -> TickResult:
        targets = []
        for name, model in self._models.items():
            observed = observe(name)
            model.crashed = pending_replacements(model.crashed, model.decision.desired, observed.replicas)
            if now >= model.next_decision_at and observed.queue is not None:
                model.next_decision_at = now + model.autoscaler.interval_s
                stages = [replica.stage for replica in observed.replicas]
                ready, starting = stages.count(Stage.READY), stages.count(Stage.STARTING) + model.crashed
                counts = SimObservation(
                    observed.queue.queued, observed.queue.running, ready, starting, model.target.limits
                )
                model.decision = Decision(model.autoscaler.desired(counts, now), type(model.autoscaler).__name__)
            targets.append(
                ModelDemand(observed, model.decision, model.target.limits, CrashBackoff(), model.target.slots)
            )
        return TickResult(Plan([], {}) if _are_settled(targets) else make_plan(targets, now), [])

    def next_tick_at(self) -> float:
        return min(model.next_decision_at for model in self._models.values())

    def on_worker_exit(self, ended: Exit) -> None:
        self._models[ended.process.model].crashed += ended.process.drained_at is None

    def desired_workers(self, model: str) -> int:
        return self._models[model].decision.desired
