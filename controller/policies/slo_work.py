"""As many workers as hold the promised wait: for the rate of arrivals, and for the work that waits already.

    rate       the larger of the arrivals' present rate and the most that their usual rate may be, z deviations up
    uneven     how much more uneven arrivals are than independent ones: 1 for those, 5 where always five come at once
    n_rate     the fewest workers of which Erlang's formula says that at most 10^(-(1 + z) / 2) of such arrivals wait
               for longer than `slo.max_wait_s`; waits grow with (1 + uneven) / 2, says Allen and Cunneen's formula
    n_backlog  those that work off what waits `drain_s` after one more could have started; 0 where nobody will be late
    want       the larger of the two

z begins lower where a start takes less time than a request may wait, and follows what happens: each request that waited
for too long raises it by `feedback.gain`, and every request lowers it by the small part of that which lets the promised
fraction through, whatever is wrong with the formula. It is left alone while nobody could have done better: at
`max_workers`, and for those who came while there were no workers at all.

Workers come at once, or as `behavior.scale_up` says. They go when as few have been wanted for as long as a start takes:
an idle worker may cost what its restart would, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from configs.scaling import Scaling
from controller.policies.queueing import (
    DispersionIndex,
    recent_rate,
    sustained_rate,
    workers_for_backlog,
    workers_for_rate,
)
from controller.types import Decision, Observation, Queue, Stage, WorkerLimits

#: z, in standard deviations: where it begins, and how far it goes. A worker that starts sooner than a request is late
#: can be had when it is needed, so that there less is kept in advance.
_INITIAL_Z, _INITIAL_Z_FAST_START = 1.5, 0.5
_MIN_Z, _MAX_Z = -1.0, 5.0
#: Where the formula is asked for less than this, the margin has gone below what it can tell.
_MAX_LATE_FRACTION = 0.9


@dataclass(frozen=True, slots=True)
class PastDecision:
    """One decision: how many there were, what was wanted, and what was decided."""

    at: float
    have: int
    want: int
    desired: int


@dataclass(frozen=True, slots=True)
class SloWorkMemory:
    """What the policy remembers. Times are on the controller's clock."""

    #: How far the waits have moved z from where it begins.
    z_offset: float = 0.0
    #: The balancer's counts of tasks begun and begun late, as of the last decision; None before the first.
    dispatched: int | None = None
    late: int = 0
    #: More were wanted than may be.
    at_max: bool = False
    #: There was no worker, and what came meanwhile is not yet worked off.
    scaling_from_zero: bool = False
    decisions: tuple[PastDecision, ...] = ()
    counts: DispersionIndex = field(default_factory=DispersionIndex)

    def shifted(self, seconds: float) -> SloWorkMemory:
        """The same with every time so much later."""
        decisions = tuple(replace(one, at=one.at + seconds) for one in self.decisions)
        return replace(self, decisions=decisions, counts=self.counts.shifted(seconds))


def decide(
    observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: SloWorkMemory | None, now: float
) -> tuple[Decision, SloWorkMemory]:
    """The number of workers wanted. Without data there is no decision."""
    have, queue = observation.provisioned, observation.queue
    memory = memory or _initial_memory(observation, scaling, now)
    if queue is None:
        return Decision(have, "no data", valid=False), memory
    memory = replace(
        _apply_feedback(memory, observation, queue, scaling), counts=memory.counts.updated(queue, scaling, now)
    )
    if queue.mean_work_s is None and queue.queued + queue.running:
        kept = min(max(have, limits.min_workers), limits.max_workers)
        return Decision(kept, "no step was measured yet: what there is to do is not known"), memory
    z = min(max(_initial_z(observation, scaling) + memory.z_offset, _MIN_Z), _MAX_Z)
    want, inputs = _demand(observation, queue, scaling, limits, memory.counts.burstiness, z, now)
    memory = replace(memory, at_max=want > limits.max_workers)
    want = min(max(want, limits.min_workers), limits.max_workers)
    window = scaling.behavior.scale_down.stabilization_window_s
    down_window_s = observation.cold_start_s if window == "auto" else window
    desired, why = _stabilize(want, observation, queue, scaling, memory, down_window_s, now)
    desired = min(max(desired, limits.min_workers), limits.max_workers)
    decisions = (*memory.decisions, PastDecision(now, have, want, desired))
    reach_s = max(down_window_s, scaling.behavior.scale_up.stabilization_window_s, scaling.interval_s)
    recent = tuple(one for one in decisions if one.at > now - reach_s)
    reason = f"{inputs['n_rate']:.0f} for the arrivals, {inputs['n_backlog']:.0f} for the {queue.queued} that wait"
    reason += why and f"; {why}"
    return Decision(desired, reason, inputs=inputs), replace(memory, decisions=recent)


def _initial_memory(observation: Observation, scaling: Scaling, now: float) -> SloWorkMemory:
    """Nothing is known of the time before: what there is was wanted."""
    first = scaling.initial_workers if scaling.initial_workers is not None else scaling.min_workers
    have = max(observation.provisioned, first)
    return SloWorkMemory(decisions=(PastDecision(now, have, have, have),))


def _initial_z(observation: Observation, scaling: Scaling) -> float:
    return _INITIAL_Z if observation.cold_start_s > scaling.slo.max_wait_s else _INITIAL_Z_FAST_START


def _apply_feedback(memory: SloWorkMemory, observation: Observation, queue: Queue, scaling: Scaling) -> SloWorkMemory:
    """Let the waits since the last decision move z."""
    ready = any(replica.stage is Stage.READY for replica in observation.replicas)
    asleep = not ready and scaling.min_workers == 0
    started, late = queue.started_total - (memory.dispatched or 0), queue.started_late_total - memory.late
    known = replace(memory, dispatched=queue.started_total, late=queue.started_late_total)
    if memory.dispatched is None or started < 0 or late < 0:  # counted anew
        return replace(known, scaling_from_zero=asleep)
    if asleep or memory.scaling_from_zero:
        return replace(known, scaling_from_zero=asleep or queue.oldest_wait_s > scaling.slo.max_wait_s)
    if memory.at_max:
        return known
    first = _initial_z(observation, scaling)
    z = first + memory.z_offset + scaling.feedback.gain * (late - started * scaling.violations)
    return replace(known, z_offset=min(max(z, _MIN_Z), _MAX_Z) - first)


def _demand(
    observation: Observation,
    queue: Queue,
    scaling: Scaling,
    limits: WorkerLimits,
    burstiness: float,
    z: float,
    now: float,
) -> tuple[int, Mapping[str, float]]:
    """Workers wanted, whatever there is, and the numbers behind it."""
    work_s = queue.mean_work_s or 0.0
    rate = max(recent_rate(queue, scaling), sustained_rate(queue, scaling, z))
    allowed = min(10 ** (-0.5 - 0.5 * z), _MAX_LATE_FRACTION)
    # The tail of the waits is as much longer as the waits are.
    patience_s = scaling.slo.max_wait_s / ((1 + burstiness) / 2)
    by_rate = workers_for_rate(
        rate, work_s * queue.batch_slowdown, queue.batch_cap or 1, patience_s, allowed, limits.max_workers
    )
    by_backlog = workers_for_backlog(observation, scaling, now) if queue.queued else 0
    inputs = {
        "arrival_rate": rate,
        "mean_work_s": work_s,
        "backlog_work_s": queue.backlog_work_s or 0.0,
        "n_rate": by_rate,
        "n_backlog": by_backlog,
        "headroom_z": z,
        "burstiness": burstiness,
    }
    return max(by_rate, by_backlog), inputs


def _stabilize(
    want: int,
    observation: Observation,
    queue: Queue,
    scaling: Scaling,
    memory: SloWorkMemory,
    down_window_s: float,
    now: float,
) -> tuple[int, str]:
    """What becomes of the wish, given what was wished lately, and why not all of it."""
    have, up, down = observation.provisioned, scaling.behavior.scale_up, scaling.behavior.scale_down
    before = max([have, *(one.desired for one in memory.decisions)])
    if queue.uptime_s < scaling.startup_hold_s and want < before:
        return before, f"{want} wanted, but arrivals have been counted for {queue.uptime_s:.0f} s only"
    started = [have, *(one.have for one in memory.decisions if one.at > now - scaling.interval_s)]
    if want > have:
        agreed = min([want, *(one.want for one in memory.decisions if one.at > now - up.stabilization_window_s)])
        if up.max_step is not None:
            agreed = min(agreed, min(started) + up.max_step)
        agreed = max(agreed, have)
        return agreed, "" if agreed == want else f"{want} wanted, which behavior.scale_up holds back"
    agreed = max([want, *(one.want for one in memory.decisions if one.at > now - down_window_s)])
    if down.max_step is not None:
        agreed = max(agreed, max(started) - down.max_step)
    agreed = min(agreed, have)
    return agreed, "" if agreed == want else f"{want} wanted, which behavior.scale_down holds back"
