"""Arithmetic of queues: workers that a rate of arrivals or a backlog needs, and how uneven arrivals are. Pure.

Work is seconds of one worker that does one task at a time. A worker runs up to a full batch of B tasks at once, each of
them `batch_slowdown` times slower: it does B / batch_slowdown seconds of work per second.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from configs.scaling import Scaling
from controller.types import Observation, Queue, Replica, Stage

#: Of a look-back period: counted for a shorter time than this, arrivals say too little of their rate.
_ENOUGH = 1 / 3
#: Of what was counted before, this much counts after each period: about the last 40 periods, an hour by default.
_DECAY = 1 - 1 / 40
#: Arrivals that are taken to have been independent before the first was seen.
_PRIOR = 100
#: Two counts that differ by more standard deviations of independent arrivals tell of another rate, not of bunches.
_SAME_RATE = 5


def erlang_b(offered: float) -> Iterator[float]:
    """Erlang's loss formula for 1, 2, 3, ... servers. Stable for thousands: no term is negative or above 1."""
    loss = 1.0
    for servers in itertools.count(1):
        loss = offered * loss / (servers + offered * loss)
        yield loss


def wait_probability(servers: int, offered: float, loss: float) -> float:
    """Erlang's delay formula: the probability that an arrival must wait, by the loss formula's value.

    For Poisson arrivals, exponential service and one queue. `offered` is the rate times the mean service time.
    """
    return 1.0 if offered >= servers else loss / (1 - offered / servers * (1 - loss))


def workers_for_rate(
    rate: float, service_s: float, batch: int, patience_s: float, allowed: float, max_workers: int
) -> int:
    """The fewest workers, each serving `batch` tasks at once, with no more than `allowed` of all arrivals late.

    `rate` is arrivals per second, `service_s` a task's time in a full batch, late who waits for longer than
    `patience_s`. `most` + 1 where `most` workers are too few.
    """
    offered = rate * service_s
    if offered <= 0:
        return 0
    full_batches = itertools.islice(erlang_b(offered), batch - 1, max_workers * batch, batch)
    for workers, loss in enumerate(full_batches, start=1):
        free = workers * batch - offered
        if (
            free > 0
            and wait_probability(workers * batch, offered, loss) * math.exp(-free * patience_s / service_s) <= allowed
        ):
            return workers
    return max_workers + 1


def upper_rate_bound(count: int, seconds: float, margin: float) -> float:
    """What the rate of a Poisson process may be of which `count` events were seen: `margin` standard deviations up."""
    return (count + margin * math.sqrt(count + margin * margin / 4) + margin * margin / 2) / seconds


def recent_rate(queue: Queue, scaling: Scaling) -> float:
    """Arrivals per second over the look-back period."""
    period = scaling.look_back_period_s
    return queue.arrivals_short_window / min(period, max(queue.uptime_s, period * _ENOUGH))


def sustained_rate(queue: Queue, scaling: Scaling, margin: float) -> float:
    """The most that arrivals per second may be, by what was counted over the rate window."""
    counted_s = max(queue.uptime_s, scaling.look_back_period_s)
    return upper_rate_bound(queue.arrivals_long_window, min(scaling.rate_window_s, counted_s), margin)


def worker_speed(queue: Queue) -> float:
    """Seconds of work that one worker with a full batch does in a second."""
    return (queue.batch_cap or 1) / queue.batch_slowdown


def eta_s(replica: Replica, cold_start_s: float, now: float) -> float:
    """In how many seconds the worker serves; 0 for one that does."""
    if replica.stage is not Stage.STARTING:
        return 0.0
    return max(replica.process.started_at + cold_start_s - now, 0.0)


def workers_for_backlog(observation: Observation, scaling: Scaling, now: float) -> int:
    """Workers that would have done what waits, and what comes meanwhile, `drain_s` after one more could have started.

    0 where nothing waits, where nothing is known of its work, or where those there are will do: nobody waits for too
    long yet, and when one more could have started, they would need no longer than `slo.max_wait_s` for what is left.
    Otherwise never fewer than there are. A starting worker is counted on from when it will serve.
    """
    queue, patience_s = observation.queue, scaling.slo.max_wait_s
    if queue is None or not queue.queued or queue.backlog_work_s is None:
        return 0
    work_s, each = queue.backlog_work_s, worker_speed(queue)
    coming = recent_rate(queue, scaling) * (queue.mean_work_s or 0.0)
    alive = [replica for replica in observation.replicas if replica.stage is not Stage.DRAINING]
    etas = [eta_s(replica, observation.cold_start_s, now) for replica in alive] + [
        observation.cold_start_s
    ] * observation.owed

    def left_s(until_s: float) -> float:
        return work_s + coming * until_s - each * sum(max(until_s - eta, 0.0) for eta in etas)

    if queue.oldest_wait_s <= patience_s and left_s(observation.cold_start_s) <= patience_s * each * len(etas):
        return 0
    missing = left_s(observation.cold_start_s + scaling.drain_s) / (each * scaling.drain_s)
    return observation.provisioned + max(math.ceil(missing), 0)


@dataclass(frozen=True, slots=True)
class DispersionIndex:
    """Arrivals of successive look-back periods, each compared with the one before, so that slow changes count little.

    The squared difference of two counts of the same mean is on average twice their variance, their sum twice the mean.
    """

    #: When the last period ended, on the controller's clock, and how many came in it; None before the first.
    at: float | None = None
    last: int = 0
    #: Squared differences and sums, those long ago less.
    squares: float = _PRIOR
    sums: float = _PRIOR

    @property
    def burstiness(self) -> float:
        """1 for independent arrivals and for more regular ones, above 1 for those that come in bunches."""
        return max(self.squares / self.sums, 1.0)

    def updated(self, queue: Queue, scaling: Scaling, now: float) -> DispersionIndex:
        """With what is seen now. A look within a period says nothing yet, a gap breaks the succession."""
        period = scaling.look_back_period_s
        if queue.uptime_s < period or (self.at is not None and now < self.at + period):
            return self
        ended = replace(self, at=now, last=queue.arrivals_short_window)
        square, both = (queue.arrivals_short_window - self.last) ** 2, queue.arrivals_short_window + self.last
        if self.at is None or now >= self.at + 2 * period or square > _SAME_RATE**2 * both:
            return ended
        return replace(ended, squares=_DECAY * self.squares + square, sums=_DECAY * self.sums + both)

    def shifted(self, seconds: float) -> DispersionIndex:
        """The same with every time so much later."""
        return self if self.at is None else replace(self, at=self.at + seconds)
