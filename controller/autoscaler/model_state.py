"""A model's state between two ticks of the autoscaler, with the durations of its starts. Pure.

The live controller records what its workers report. A simulation sets `started_in_s` and `from_standby` in its
replicas, or it configures `scaling.cold_start_s` and `scaling.standby_start_s`. `ModelState.observe` combines both.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from configs.devices import machine_of
from configs.scaling import Scaling
from controller.planning.crash_backoff import CrashKind, decay, pending_replacements
from controller.planning.rolling_update import UpdatePolicy
from controller.planning.standby import as_replica, count_ready
from controller.policies import Policy, bounds
from controller.types import CrashBackoff, Decision, Observation, Replica, Stage, WorkerLimits

_CRASHES: tuple[str, ...] = get_args(CrashKind)
#: Latest starts that an estimate uses, of either kind.
_MAX_SAMPLES = 20
#: Machines whose starts are kept: those with the latest ones.
_MAX_MACHINES = 256
#: Nine of ten starts take no longer than the estimate.
_QUANTILE = 0.9
#: Assumed duration of a start from standby before one was measured.
FIRST_STANDBY_S = 5.0


@dataclass(frozen=True, slots=True)
class RecentStarts:
    """Durations of a model's last starts in seconds, oldest first."""

    cold: tuple[float, ...] = ()
    standby: tuple[float, ...] = ()

    def with_sample(self, seconds: float, *, standby: bool) -> RecentStarts:
        """Return these and one more, without the oldest beyond the limit."""
        if standby:
            return RecentStarts(self.cold, (*self.standby, seconds)[-_MAX_SAMPLES:])
        return RecentStarts((*self.cold, seconds)[-_MAX_SAMPLES:], self.standby)


def next_start_s(starts: RecentStarts, scaling: Scaling, guess_s: float, *, standby: bool) -> float:
    """Return the expected seconds of a cold start, or of one from standby, which takes no longer.

    `guess_s` is for a cold start that is neither configured nor measured.
    """
    kinds: list[tuple[float | Literal["auto"], Sequence[float], float]]
    kinds = [(scaling.cold_start_s, starts.cold, guess_s)]
    if standby:
        kinds.append((scaling.standby_start_s, starts.standby, FIRST_STANDBY_S))
    expected_s = math.inf
    for configured, measured, guess_s in kinds:
        usual_s = sorted(measured)[math.ceil(_QUANTILE * len(measured)) - 1] if measured else guess_s
        expected_s = min(expected_s, usual_s if configured == "auto" else configured)
    return expected_s


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
    #: Crashes since the controller started, by kind.
    crashes_by_kind: Counter[str] = dataclasses.field(default_factory=lambda: Counter(dict.fromkeys(_CRASHES, 0)))
    #: Workers that died since the desired number was last reached.
    lost: int = 0
    #: When the last decision was made.
    decided_at: float = -math.inf
    #: Whether any decision was ever valid.
    has_decided: bool = False
    starts: RecentStarts = dataclasses.field(default_factory=RecentStarts)
    #: The same by machine; an estimate for a machine without starts uses those of all.
    machine_starts: dict[str, RecentStarts] = dataclasses.field(default_factory=dict)
    #: Machine of its next worker as last planned.
    next_machine: str = ""
    #: Workers on silent machines, which count as lost.
    unreachable: frozenset[str] = frozenset()
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
    def kinds(self) -> Sequence[str]:
        """Return the kinds of its devices with their machines: `cuda`, `cpu` or `sim`, or `gpu-box/cuda`."""
        return list(dict.fromkeys(slot.partition(":")[0] for slot in self.slots)) or ["cpu"]

    def update_slots(self, fresh: ModelState) -> None:
        """Take over the devices of the machines that have joined or left."""
        self.slots, self.limits = fresh.slots, fresh.limits

    def observe(self, observation: Observation, now: float, silent: Collection[str] = ()) -> Observation:
        """Update crash records and start-up times. Return the observation with the lost workers and the next start.

        Workers on the `silent` machines are left out.
        """
        if silent or self.unreachable:
            observation = self._without_unreachable(observation, silent)
        if self.crashes.count:
            self.crashes = decay(self.crashes, observation.replicas, now)
        if self.standby_crashes.count:
            self.standby_crashes = decay(self.standby_crashes, [as_replica(spare) for spare in observation.spares], now)
        if self.lost:
            self.lost = pending_replacements(self.lost, self.decision.desired, observation.replicas)
        started = {replica.process.id: replica for replica in observation.replicas if replica.started_in_s > 0}
        for name in sorted(started.keys() - self.recorded_starts):
            self._record_start(started[name])
        self.recorded_starts = (self.recorded_starts | started.keys()) & {
            replica.process.id for replica in observation.replicas
        }
        has_standby = bool(observation.spares) and count_ready(observation.spares, self.kinds) > 0
        starts = self.machine_starts.get(self.next_machine, self.starts)
        starts = RecentStarts(starts.cold or self.starts.cold, starts.standby or self.starts.standby)
        next_s = next_start_s(starts, self.scaling, observation.cold_start_s, standby=has_standby)
        return dataclasses.replace(observation, owed=self.lost, cold_start_s=next_s)

    def _without_unreachable(self, observation: Observation, silent: Collection[str]) -> Observation:
        """Return the observation without the workers on silent machines. New ones among them count as lost."""
        away = [replica for replica in observation.replicas if machine_of(replica.process.device) in silent]
        present = frozenset(replica.process.id for replica in away if replica.stage is not Stage.DRAINING)
        self.lost += len(present - self.unreachable)
        self.unreachable = present
        return dataclasses.replace(
            observation,
            replicas=[replica for replica in observation.replicas if machine_of(replica.process.device) not in silent],
            spares=[child for child in observation.spares if machine_of(child.device) not in silent],
        )

    def _record_start(self, replica: Replica) -> None:
        seconds, standby = replica.started_in_s, replica.from_standby
        machine = machine_of(replica.process.device)
        self.starts = self.starts.with_sample(seconds, standby=standby)
        own = self.machine_starts.pop(machine, RecentStarts())
        self.machine_starts[machine] = own.with_sample(seconds, standby=standby)
        while len(self.machine_starts) > _MAX_MACHINES:
            del self.machine_starts[next(iter(self.machine_starts))]
