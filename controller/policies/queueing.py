"""Queueing formulas: the workers for an arrival rate or for a backlog, and the statistics of arrivals. Pure.

Work is measured in seconds of one worker that runs one task at a time. A worker runs a batch of up to B tasks, each
`batch_slowdown` times slower. So it does B / batch_slowdown seconds of work per second.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from configs.scaling import Scaling
from controller.types import Observation, Queue, Replica, Stage
from wire.snapshot import ArrivalBucket

#: Windows in seconds in which a step of the rate may show first, and the margin in standard deviations.
_STEP_WINDOWS_S = (5.0, 15.0, 30.0)
_STEP_MARGIN = 2.0
#: Windows in seconds and margin in standard deviations of a step that no chance explains.
_SUDDEN_WINDOWS_S, _SUDDEN_MARGIN, _SUDDEN_TASKS = (15.0, 30.0), 8.0, 6
#: Least time in seconds that the usual rate is taken over.
_USUAL_S = 30.0
#: Decay factor of the sums per period: the estimate covers about 40 periods, an hour by default.
_DECAY = 1 - 1 / 40
#: Prior weight: this many independent arrivals are assumed before the first observation.
_PRIOR = 100
#: Probabilities that are left out, relative to the rest.
_NEGLIGIBLE = 1e-9
#: A backlog is cleared within at least this part of a start. What arrives during the start is an estimate: its error
#: would become many workers if it had to be cleared within a much shorter time.
_LEAST_DRAIN_STARTS = 0.25
#: The backlog of a sudden step is cleared within this many allowed waits, where a start fits into one.
_SUDDEN_DRAIN_WAITS = 1.5
#: Least dispersion that is believed.
_REGULAR = 0.1
#: Counts that differ by more than this many Poisson standard deviations show a rate change, not burstiness.
_SAME_RATE = 5
#: Time constant in seconds over which the arrivals of a quiet model are counted.
_QUIET_S = 4 * 3600.0
#: A model with more arrivals than these within `rate_window_s` is not quiet, nor one known for less than two of them.
_QUIET_ARRIVALS = 15
#: The variation covers about this many arrivals, and is that of exponential work until there are `_ENOUGH_WORK`.
_VARIATION_OVER, _ENOUGH_WORK = 1000.0, 20.0


def late_fraction(
    workers: int, rate: float, work_s: float, batch: int, batch_slowdown: float, patience_s: float
) -> float:
    """Return the fraction of the arrivals that wait for longer than `patience_s`; `rate` is arrivals per second.

    The tasks are a birth-death process with one queue, Poisson arrivals and exponential work (Kleinrock, Queueing
    Systems, volume 1, chapter 3). They are spread evenly over the workers. A task among b on its worker takes
    1 + (batch_slowdown - 1) * (b - 1) / (batch - 1) times `work_s`. For a batch of one this is Erlang's delay formula.
    """
    most = workers * batch
    served_rate = most / (work_s * batch_slowdown)
    if rate >= served_rate:
        return 1.0
    slope = (batch_slowdown - 1) / (batch - 1) if batch > 1 else 0.0
    # Probabilities of fewer tasks than places, relative to that of just as many.
    each, below = 1.0, 0.0
    for tasks in range(most, 0, -1):
        each *= tasks / (work_s * rate * (1 + slope * max(tasks / workers - 1, 0.0)))
        below += each
        if each < _NEGLIGIBLE * below or below > 1 / _NEGLIGIBLE:
            break
    waiting = 1 / (1 - rate / served_rate)
    return waiting / (waiting + below) * math.exp(-(served_rate - rate) * patience_s)


def workers_for_rate(
    rate: float,
    work_s: float,
    batch: int,
    batch_slowdown: float,
    patience_s: float,
    allowed: float,
    max_workers: int,
) -> int:
    """Return the fewest workers for which at most the fraction `allowed` of the arrivals is late, as `late_fraction`.

    The result is `max_workers` + 1 if `max_workers` are too few.
    """
    if rate * work_s <= 0:
        return 0
    least = min(max(math.ceil(rate * work_s * batch_slowdown / batch), 1), max_workers + 1)

    def is_enough(workers: int) -> bool:
        return late_fraction(workers, rate, work_s, batch, batch_slowdown, patience_s) <= allowed

    return least + bisect.bisect_left(range(least, max_workers + 1), True, key=is_enough)


def rate_bound(count: float, seconds: float, margin: float) -> float:
    """Return the upper confidence bound of the rate of a Poisson process with `count` events in so many seconds.

    `margin` is in standard deviations. The bound is that of the score interval (Rao's test).
    """
    return (count + margin * math.sqrt(count + margin * margin / 4) + margin * margin / 2) / seconds


def arrival_rate(queue: Queue, scaling: Scaling, margin: float, history: ArrivalHistory) -> float:
    """Return the arrivals per second to provide for: the recent rate, or the bound of the long-term one if larger.

    `margin` is as in `rate_bound`. A few arrivals within `rate_window_s` tell little of the rate, and their bound is
    far above it. So the bound of a quiet model is that of its last hours, and its recent rate is less one standard
    deviation: 0 for one arrival.
    """
    counted_s = min(scaling.rate_window_s, max(queue.uptime_s, scaling.look_back_period_s))
    bound = rate_bound(queue.arrivals_long_window, counted_s, margin)
    recent = queue.recent_rate(scaling.look_back_period_s)
    if queue.arrivals_long_window > _QUIET_ARRIVALS or history.seconds <= 2 * counted_s:
        return max(recent, bound)
    bound = min(bound, rate_bound(history.count, history.seconds, margin))
    recent *= 1 - 1 / math.sqrt(max(queue.arrivals_short_window, 1))
    return max(recent, queue.arrivals_long_window / counted_s, bound)


def step_rate(queue: Queue, rate: float) -> float:
    """Return `rate`, or more if the last seconds had more arrivals than chance explains. Arrivals per second."""
    ages = [(queue.uptime_s - bucket.second, bucket.tasks) for bucket in queue.recent_arrivals]
    for window_s in _STEP_WINDOWS_S:
        count = sum(count for age_s, count in ages if age_s <= window_s)
        rate = max(rate, (count - _STEP_MARGIN * math.sqrt(count)) / window_s)
    return rate


def sudden_rate(queue: Queue, rate_window_s: float) -> float:
    """Return the arrivals per second of the last seconds if they cannot be chance at the usual rate, else 0.

    The usual rate is that of the rest of the `rate_window_s` seconds over which `arrivals_long_window` counts.
    """
    found = 0.0
    for window_s in _SUDDEN_WINDOWS_S:
        count = sum(bucket.tasks for bucket in queue.recent_arrivals if queue.uptime_s - bucket.second <= window_s)
        rest_s = max(min(rate_window_s, queue.uptime_s) - window_s, _USUAL_S)
        usual = (max(queue.arrivals_long_window - count, 0) + 1) * window_s / rest_s
        if count >= _SUDDEN_TASKS and count > usual + _SUDDEN_MARGIN * math.sqrt(usual + 1):
            found = max(found, count / window_s)
    return found


def eta_s(replica: Replica, cold_start_s: float, now: float) -> float:
    """Return the seconds until the worker is ready; 0 if it is."""
    if replica.stage is not Stage.STARTING:
        return 0.0
    return max(replica.process.started_at + cold_start_s - now, 0.0)


def workers_for_backlog(
    observation: Observation, scaling: Scaling, now: float, *, believes_step: bool = True, drain_factor: float = 1.0
) -> int:
    """Return the workers that clear the backlog and new arrivals within `drain_s` after one more could have started.

    The result is 0 if nothing is queued, if its work is unknown, or if the present workers are enough. They are enough
    if no task is late yet and if, once one more could have started, they clear the rest within `slo.max_wait_s`.
    Otherwise the result is at least the provisioned number. A starting worker counts from the time it is ready.
    `believes_step`: many arrivals within seconds are the beginning of a higher rate, not a bunch. `drain_factor`
    multiplies `drain_s`, which is at least a quarter of a start.
    """
    queue = observation.queue
    if queue is None or not queue.queued or (work_s := queue.divisible_work_s) is None:
        return 0
    inputs = backlog_inputs(queue, scaling, observation.cold_start_s, believes_step=believes_step)
    inputs = inputs._replace(drain_s=inputs.drain_s * drain_factor)
    alive = [replica for replica in observation.replicas if replica.stage is not Stage.DRAINING]
    etas = [eta_s(replica, observation.cold_start_s, now) for replica in alive] + [
        observation.cold_start_s
    ] * observation.owed
    return workers_to_clear(work_s, queue.oldest_wait_s, etas, inputs)


class BacklogInputs(NamedTuple):
    """The inputs of the backlog rule besides the backlog: work that arrives per second, and settings in seconds."""

    arriving: float
    #: Seconds of work per second of one worker.
    speed: float
    max_wait_s: float
    cold_start_s: float
    drain_s: float


def backlog_inputs(queue: Queue, scaling: Scaling, cold_start_s: float, *, believes_step: bool) -> BacklogInputs:
    """Return the inputs for the recent arrivals; `believes_step` as in `workers_for_backlog`."""
    max_wait_s, rate = scaling.slo.max_wait_s, queue.recent_rate(scaling.look_back_period_s)
    drain_s = max(scaling.effective_drain_s, _LEAST_DRAIN_STARTS * cold_start_s)
    if believes_step:
        rate = step_rate(queue, rate)
        # A worker that starts within the allowed wait can still help the requests that wait now.
        if cold_start_s <= max_wait_s and (sudden := sudden_rate(queue, scaling.rate_window_s)):
            rate, drain_s = max(rate, sudden), min(drain_s, _SUDDEN_DRAIN_WAITS * max_wait_s)
    return BacklogInputs(rate * (queue.mean_work_s or 0.0), queue.worker_speed, max_wait_s, cold_start_s, drain_s)


def workers_to_clear(work_s: float, oldest_wait_s: float, etas: Sequence[float], inputs: BacklogInputs) -> int:
    """Return the workers that clear the backlog `work_s`; see `workers_for_backlog`.

    `etas` has the seconds until each worker is ready, 0 if it is.
    """
    speed, cold_start_s = inputs.speed, inputs.cold_start_s

    def left_s(until_s: float) -> float:
        return work_s + inputs.arriving * until_s - speed * sum(max(until_s - eta, 0.0) for eta in etas)

    if oldest_wait_s <= inputs.max_wait_s and left_s(cold_start_s) <= inputs.max_wait_s * speed * len(etas):
        return 0
    missing = left_s(cold_start_s + inputs.drain_s) / (speed * inputs.drain_s)
    return len(etas) + max(math.ceil(missing), 0)


@dataclass(frozen=True, slots=True)
class DispersionIndex:
    """Index of dispersion of the arrivals, estimated from successive look-back periods.

    Two counts with the same mean have an expected squared difference of twice their variance. Their expected sum is
    twice the mean. Comparing neighbours makes the estimate insensitive to slow changes of the rate.
    """

    #: End of the last period on the controller's clock, and its arrivals; None before the first.
    at: float | None = None
    last: int = 0
    #: Exponentially decayed sums of the squared differences and of the sums.
    squares: float = _PRIOR
    sums: float = _PRIOR

    @property
    def burstiness(self) -> float:
        """Return 1 for Poisson arrivals, more for arrivals in bursts, and less for regular ones."""
        return max(self.squares / self.sums, _REGULAR)

    def updated(self, queue: Queue, scaling: Scaling, now: float) -> DispersionIndex:
        """Return the estimate with this observation. One within a period is ignored; a gap restarts the comparison."""
        period = scaling.look_back_period_s
        if queue.uptime_s < period or (self.at is not None and now < self.at + period):
            return self
        ended = replace(self, at=now, last=queue.arrivals_short_window)
        square, both = (queue.arrivals_short_window - self.last) ** 2, queue.arrivals_short_window + self.last
        if self.at is None or now >= self.at + 2 * max(period, scaling.interval_s) or square > _SAME_RATE**2 * both:
            return ended
        return replace(ended, squares=_DECAY * self.squares + square, sums=_DECAY * self.sums + both)

    def shifted(self, seconds: float) -> DispersionIndex:
        """Return a copy with all times moved by `seconds`."""
        return self if self.at is None else replace(self, at=self.at + seconds)


@dataclass(frozen=True, slots=True)
class ArrivalHistory:
    """Decayed count of the arrivals of about four hours, and of the seconds in which they were counted."""

    count: float = 0.0
    seconds: float = 0.0

    def updated(self, tasks: int, elapsed_s: float) -> ArrivalHistory:
        """Return the count after `elapsed_s` more seconds with so many arrivals."""
        decay = math.exp(-elapsed_s / _QUIET_S)
        return ArrivalHistory(self.count * decay + tasks, self.seconds * decay + _QUIET_S * (1 - decay))


@dataclass(frozen=True, slots=True)
class WorkVariation:
    """Decayed sums of the work of arrivals, for its coefficient of variation."""

    count: float = 0.0
    work_s: float = 0.0
    squares: float = 0.0

    @property
    def squared(self) -> float:
        """Return the squared coefficient of variation: 0 for constant, 1 for exponential work."""
        if self.count < _ENOUGH_WORK or self.work_s <= 0:
            return 1.0
        return max(self.squares * self.count / self.work_s**2 - 1, 0.0)

    def updated(self, buckets: Sequence[ArrivalBucket]) -> WorkVariation:
        """Return the sums with these arrivals. Those whose work was not measured do not count."""
        count, work_s, squares = self.count, self.work_s, self.squares
        for bucket in buckets:
            if bucket.work_s <= 0:
                continue
            rest_s, others = max(bucket.work_s - bucket.largest_s, 0.0), bucket.tasks - 1
            count, work_s = count + bucket.tasks, work_s + bucket.work_s
            squares += bucket.largest_s**2 + (rest_s**2 / others if others else 0.0)
        decay = min(_VARIATION_OVER / count, 1.0) if count else 1.0
        return WorkVariation(count * decay, work_s * decay, squares * decay)
