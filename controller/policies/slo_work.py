"""Policy `slo_work`: the fewest workers that keep queue waits within the service level objective.

    rate        the larger of the recent arrival rate and the upper confidence bound of the long-term rate at z; for
                few arrivals, the latter is that of the last hours
    burstiness  index of dispersion of the arrivals: 1 for a Poisson process, 5 if five always arrive together
    n_rate      the fewest workers for which Erlang's C formula gives at most 10^(-(1 + z) / 2) of the arrivals a wait
                above `slo.max_wait_s`; waits grow with (burstiness + variation) / 2 (Allen and Cunneen's
                approximation), where variation is the squared coefficient of variation of the work; both are at
                least 1 unless the arrivals are regular
    n_backlog   the workers that clear the backlog within `drain_s` after one more could have started; 0 if no
                request will be late
    floor       the least number that replays of the recent arrivals ask for; 0 where the rest is enough
    n_keep      the same as n_rate for a larger margin: workers are not removed below it
    want        the largest of n_rate, n_backlog and floor, and of n_keep up to the present number

z is a safety margin with feedback. Each late request raises it by `feedback.gain`, by more where the promise allows
fewer than at 99 %. Each request lowers it so that z settles where the allowed fraction of requests is late. This
corrects errors of the formula. Of many requests between two decisions each counts for less, as they are late together.
A z below -1 also allows a backlog to take longer than `drain_s`.
Little experience is a risk too, so the first few hundred requests of a model, or its first hours if they are rare, are
served with a higher z.

Hysteresis: n_rate is for z - 0.2 and n_keep for z + 0.4, so that a rate that changes by chance starts few workers.

z starts higher the longer a start takes, in allowed waits. It does not change at `max_workers`, or for requests that
arrived while the model had no workers, because more workers were impossible there. Requests that were late in every
replay or within `startup_hold_s` do not raise it, and it does not change while a replayed setting other than the
normal one is used.

Scale-up is immediate, or limited by `behavior.scale_up`. Scale-down waits until fewer workers have been enough for one
start-up time and for a minute, or longer by `replay_choice`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from configs.scaling import Scaling
from controller.policies import replay_choice
from controller.policies.queueing import (
    DispersionIndex,
    arrival_rate,
    workers_for_backlog,
    workers_for_rate,
)
from controller.policies.replay_choice import ReplayMemory
from controller.types import Decision, Observation, Queue, Stage, WorkerLimits

#: Initial z in standard deviations where a start takes four allowed waits, and its increase if it takes ten times as
#: long. It is 0 if a worker starts within the allowed wait: then it can start on demand.
_INITIAL_Z, _USUAL_START, _Z_PER_DECADE = 1.5, 4.0, 0.8
#: Range of z.
_MIN_Z, _MAX_Z = -20.0, 5.0
#: A z below this one multiplies `drain_s` by 1 + the difference.
_NORMAL_DRAIN_Z = -1.0
#: Hysteresis: the subtraction from z for adding workers, and the addition to z for removing them.
_TO_ADD, _TO_REMOVE = 0.2, 0.4
#: Addition to z before the first request, and the number of requests after which it is half of that.
_INEXPERIENCE, _HALF_EXPERIENCE = 0.7, 100.0
#: Below this rate in arrivals per second a model needs no hundred requests: this many seconds count as one.
_RARE, _LIKE_A_REQUEST_S = 0.01, 12.0
#: Fraction of the allowed late requests that is aimed at. The feedback is slow, and past late requests stay counted.
_VIOLATION_MARGIN = 0.75
#: The fraction of late requests from which `feedback.gain` is as given. For lower ones it grows in proportion, so that
#: the few late requests move z as fast.
_USUAL_VIOLATIONS = 0.0075
#: More requests than these between two decisions count as so many: they are late together.
_MOST_COUNTED = 100
#: Upper limit of the late fraction that the formula may allow, for a very low z.
_MAX_LATE_FRACTION = 0.9
#: Below this index of dispersion the arrivals are regular, and variation below that of chance counts.
_REGULAR_ARRIVALS = 0.4
#: Past decisions are kept this long, because a longer hold may be chosen at any time.
_LONGEST_HOLD_S = 1800.0


@dataclass(frozen=True, slots=True)
class PastDecision:
    """One decision: the provisioned, the wanted and the decided number of workers."""

    at: float
    have: int
    want: int
    desired: int


@dataclass(frozen=True, slots=True)
class SloWorkMemory:
    """The state of the policy. Times are on the controller's clock."""

    #: Sum of the feedback: z minus its initial value.
    z_offset: float = 0.0
    #: The balancer's counters of tasks that were started or late, and of late ones, at the last decision; None before
    #: the first.
    dispatched: int | None = None
    late: int = 0
    #: Started tasks so far, also those before a restart of the balancer.
    served: int = 0
    #: The last decision wanted more than `max_workers`.
    at_max: bool = False
    #: The model had no workers, and the requests that arrived meanwhile still wait.
    scaling_from_zero: bool = False
    decisions: tuple[PastDecision, ...] = ()
    counts: DispersionIndex = field(default_factory=DispersionIndex)
    replays: ReplayMemory = field(default_factory=ReplayMemory)

    def shifted(self, seconds: float) -> SloWorkMemory:
        """Return a copy with all times moved by `seconds`."""
        decisions = tuple(replace(past, at=past.at + seconds) for past in self.decisions)
        return replace(self, decisions=decisions, counts=self.counts.shifted(seconds))


def decide(
    observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: SloWorkMemory | None, now: float
) -> tuple[Decision, SloWorkMemory]:
    """Return the decision and the new state. Without data the decision is not valid."""
    have, queue = observation.provisioned, observation.queue
    memory = memory or _initial_memory(observation, scaling, now)
    if queue is None:
        return Decision(have, "no data", valid=False), memory
    replays, new_arrivals = memory.replays.counted(queue, scaling.reported_arrivals_s)
    down_s = scaling.behavior.scale_down.stabilization_window_s
    if down_s != "auto":
        replays = replays.without_replays(queue)
    memory = replace(memory, counts=memory.counts.updated(queue, scaling, now), replays=replays)
    start = observation.cold_start_s / scaling.slo.max_wait_s
    initial_z = _INITIAL_Z + _Z_PER_DECADE * math.log10(start / _USUAL_START) if start >= 1 else 0.0
    if queue.mean_work_s is None and queue.queued + queue.running:
        unchanged = min(max(have, limits.min_workers), limits.max_workers)
        memory = _apply_feedback(memory, observation, queue, scaling, initial_z)
        return Decision(unchanged, "no step was measured yet, so the backlog is unknown"), memory
    z = min(max(initial_z + memory.z_offset, _MIN_Z) + _inexperience(memory, queue), _MAX_Z)
    want, inputs = _demand(observation, queue, scaling, limits, memory, z, now)
    if down_s == "auto":
        n_rate, n_keep = int(inputs["n_rate"]), int(inputs["n_keep"])
        # The first workers are starting, one after the other: replays with fewer would find all requests late.
        expected = min(_number_before(memory, have), limits.max_workers)
        replays = replay_choice.update(
            replays, new_arrivals, observation, queue, scaling, limits, n_rate, n_keep, expected
        )
        memory = replace(memory, replays=replays)
    hold_s = max(observation.cold_start_s, replays.current.hold_s) if down_s == "auto" else down_s
    floor = replays.current.floor
    memory = _apply_feedback(memory, observation, queue, scaling, initial_z)
    memory = replace(memory, at_max=want > limits.max_workers)
    want = min(max(want, floor, limits.min_workers), limits.max_workers)
    desired, limited_by = _stabilize(want, observation, queue, scaling, memory, hold_s, now)
    desired = min(max(desired, limits.min_workers), limits.max_workers)
    decisions = (*memory.decisions, PastDecision(now, have, want, desired))
    reach_s = max(_LONGEST_HOLD_S, hold_s, scaling.behavior.scale_up.stabilization_window_s, scaling.interval_s)
    recent = tuple(past for past in decisions if past.at > now - reach_s)
    reason = _reason(inputs, queue.queued, have, floor)
    reason += limited_by and f"; {limited_by}"
    inputs = {**inputs, "floor": floor, "hold_s": hold_s}
    return Decision(desired, reason, inputs=inputs), replace(memory, decisions=recent)


def _number_before(memory: SloWorkMemory, have: int) -> int:
    """Return the number of workers that was decided last, or the present one if it is larger."""
    return max([have, *(past.desired for past in memory.decisions[-1:])])


def _inexperience(memory: SloWorkMemory, queue: Queue) -> float:
    """Return the addition to z for what is not known of the model yet."""
    history, known = memory.replays.history, float(max(memory.served, queue.started_total))
    if history.count < _RARE * history.seconds:
        known += history.seconds / _LIKE_A_REQUEST_S
    return _INEXPERIENCE * _HALF_EXPERIENCE / (_HALF_EXPERIENCE + known)


def _reason(inputs: Mapping[str, float], queued: int, have: int, floor: int) -> str:
    """Return what asks for how many workers."""
    n_rate, n_backlog, kept = inputs["n_rate"], inputs["n_backlog"], min(inputs["n_keep"], have)
    parts = [f"{n_rate:.0f} for the arrivals"]
    if n_backlog:
        parts.append(f"{n_backlog:.0f} for the {queued} queued")
    if kept > max(n_rate, n_backlog):
        parts.append(f"{kept:.0f} not to remove one too early")
    if floor > max(n_rate, kept):
        parts.append(f"at least {floor} by a replay of the recent arrivals")
    return ", ".join(parts)


def _initial_memory(observation: Observation, scaling: Scaling, now: float) -> SloWorkMemory:
    """Return the state before the first decision. It assumes that the present workers were wanted."""
    first = scaling.initial_workers if scaling.initial_workers is not None else scaling.min_workers
    have = max(observation.provisioned, first)
    return SloWorkMemory(decisions=(PastDecision(now, have, have, have),))


def _apply_feedback(
    memory: SloWorkMemory, observation: Observation, queue: Queue, scaling: Scaling, initial_z: float
) -> SloWorkMemory:
    """Return the state with z moved by the waits since the last decision."""
    ready = any(replica.stage is Stage.READY for replica in observation.replicas)
    asleep = not ready and scaling.min_workers == 0
    # A task that was not started in time is late, whether it was started later or not at all.
    total = queue.started_total + queue.unstarted_late_total
    total_late = queue.started_late_total + queue.unstarted_late_total
    started, late = total - (memory.dispatched or 0), total_late - memory.late
    served = memory.served + (started if started >= 0 else total)
    known = replace(memory, dispatched=total, late=total_late, served=served)
    if memory.dispatched is None or started < 0 or late < 0:  # first decision, or the balancer restarted
        return replace(known, scaling_from_zero=asleep)
    if asleep or memory.scaling_from_zero:
        return replace(known, scaling_from_zero=asleep or queue.oldest_wait_s > scaling.slo.max_wait_s)
    preventable = memory.replays.preventable(late, scaling.startup_hold_s)
    if memory.at_max or preventable is None:
        return known
    target = scaling.feedback.violation_target
    violations = _VIOLATION_MARGIN * (1 - scaling.slo.percentile / 100) if target == "auto" else target
    gain = scaling.feedback.gain * max(_USUAL_VIOLATIONS / violations, 1.0)
    weight = min(_MOST_COUNTED / max(started, 1), 1.0)
    z = initial_z + memory.z_offset + gain * weight * (preventable - started * violations)
    return replace(known, z_offset=min(max(z, _MIN_Z), _MAX_Z) - initial_z)


def _demand(
    observation: Observation,
    queue: Queue,
    scaling: Scaling,
    limits: WorkerLimits,
    memory: SloWorkMemory,
    z: float,
    now: float,
) -> tuple[int, Mapping[str, float]]:
    """Return the wanted number of workers, without regard to the present number, and the inputs of the formula."""
    work_s = queue.mean_work_s or 0.0
    burstiness, variation = memory.counts.burstiness, memory.replays.variation.squared
    if burstiness > _REGULAR_ARRIVALS:
        burstiness, variation = max(burstiness, 1.0), max(variation, 1.0)
    # Both stretch the tail of the wait distribution by the same factor as its mean.
    patience_s = scaling.slo.max_wait_s / ((burstiness + variation) / 2)
    batch, slowdown = queue.batch_cap or 1, queue.batch_slowdown

    def by_rate(margin: float) -> tuple[float, int]:
        rate = arrival_rate(queue, scaling, margin, memory.replays.history)
        allowed = min(10 ** (-0.5 - 0.5 * margin), _MAX_LATE_FRACTION)
        return rate, workers_for_rate(rate, work_s, batch, slowdown, patience_s, allowed, limits.max_workers)

    rate, n_rate = by_rate(z - _TO_ADD)
    _, n_keep = by_rate(z + _TO_REMOVE)
    # A floor that was learnt has the room for bunches.
    believes_step = memory.replays.current.floor == 0
    slower = 1 + max(_NORMAL_DRAIN_Z - z, 0)
    n_backlog = workers_for_backlog(observation, scaling, now, believes_step=believes_step, drain_factor=slower)
    inputs = {
        "arrival_rate": rate,
        "mean_work_s": work_s,
        "backlog_work_s": queue.backlog_work_s or 0.0,
        "n_rate": n_rate,
        "n_keep": n_keep,
        "n_backlog": n_backlog,
        "headroom_z": z,
        "burstiness": burstiness,
        "work_variation": variation,
    }
    return max(n_rate, min(n_keep, observation.provisioned), n_backlog), inputs


def _stabilize(
    want: int,
    observation: Observation,
    queue: Queue,
    scaling: Scaling,
    memory: SloWorkMemory,
    hold_s: float,
    now: float,
) -> tuple[int, str]:
    """Apply the stabilization windows and step limits. Return the number, and why it differs from `want`."""
    have, up, down = observation.provisioned, scaling.behavior.scale_up, scaling.behavior.scale_down
    before = _number_before(memory, have)
    if queue.uptime_s < scaling.startup_hold_s and want < before:
        return before, (
            f"{want} wanted, but none is removed until arrivals were counted for {scaling.startup_hold_s:.0f} s "
            f"(startup_hold_s; {queue.uptime_s:.0f} s so far)"
        )
    started = [have, *(past.have for past in memory.decisions if past.at > now - scaling.interval_s)]
    if want > have:
        agreed = min([want, *(past.want for past in memory.decisions if past.at > now - up.stabilization_window_s)])
        if up.max_step is not None:
            agreed = min(agreed, min(started) + up.max_step)
        agreed = max(agreed, have)
        return agreed, "" if agreed == want else f"{want} wanted, but behavior.scale_up limits the increase"
    agreed = max([want, *(past.want for past in memory.decisions if past.at > now - hold_s)])
    if down.max_step is not None:
        agreed = max(agreed, max(started) - down.max_step)
    agreed = min(agreed, have)
    return agreed, "" if agreed == want else f"{want} wanted, but behavior.scale_down limits the decrease"
