"""Request streams, arrival times and statistics of the benchmark. Pure: clocks are passed in."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from wire.inputs import ImageInputs


@dataclass(eq=False)
class BenchRequest:
    """A request of a load. Times are seconds on the caller's clock."""

    task: str
    inputs: ImageInputs
    #: The closed-loop user.
    user: int = 0
    arrived: float = 0.0
    #: Time at which the encoded image was ready; None before.
    finished: float | None = None
    error: str = ""


class Steps(NamedTuple):
    """A uniform distribution of step counts from `low` to `high`."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Steps:
        """Parse `25` or `10-50`. Raises `ValueError`."""
        low, _, high = text.partition("-")
        made = cls(int(low), int(high or low))
        if not 1 <= made.low <= made.high:
            raise ValueError(f"not a number of steps, nor a range from low to high: {text}")
        return made

    @property
    def mean(self) -> float:
        """Expected number of steps."""
        return (self.low + self.high) / 2

    @property
    def mixed(self) -> bool:
        """True if the step counts differ."""
        return self.low != self.high


def request_stream(base: ImageInputs, steps: Steps, name: str, user: int = 0) -> Iterator[BenchRequest]:
    """Yield requests without end, with distinct prompts and seeds; deterministic by `name`."""
    rng = random.Random(name)
    number = 0
    while True:
        number += 1
        inputs = msgspec.structs.replace(
            base,
            prompt=f"{base.prompt} {rng.randrange(10**6)}",
            steps=rng.randint(*steps),
            seed=rng.randrange(2**31),
        )
        yield BenchRequest(f"{name}.{number}", inputs, user)


def poisson(rate: float, seconds: float, name: str) -> list[float]:
    """Return Poisson arrival times in [0, seconds) at `rate` per second.

    Their number is fixed to the expectation, so that short traces are as heavy as long ones. A Poisson process of given
    number distributes it uniformly.
    """
    rng = random.Random(name)
    return sorted(rng.uniform(0, seconds) for _ in range(max(round(rate * seconds), 1)))


def completion_rate(times: Sequence[float], amounts: Sequence[float], since: float, until: float) -> float:
    """Return the amount per second of what finished at these times, between `since` and `until`.

    It is the least-squares slope of the cumulative sum. A count would be wrong by up to a full batch at either end. If
    the times are too close together for a slope, the count is used.
    """
    order = np.argsort(times, kind="stable")
    at = np.asarray(times, float)[order]
    if len(at) < 2 or at[-1] - at[0] < (until - since) / 2:
        return float(sum(amounts)) / (until - since)
    return float(np.polyfit(at - at[0], np.cumsum(np.asarray(amounts, float)[order]), 1)[0])


def quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile of the values; NaN if there are none."""
    return float(np.quantile(values, share)) if len(values) else float("nan")


def best_batch(seconds: dict[int, float], min_gain: float) -> int:
    """Return the best batch size, given the seconds of each.

    A larger batch must gain `min_gain` in images per second over the best smaller one, as in the worker.
    """
    best, best_rate = 1, 0.0
    for batch, took in sorted(seconds.items()):
        if batch / took > (1 + min_gain) * best_rate:
            best, best_rate = batch, batch / took
    return best


class QueuedRequest(NamedTuple):
    """A request that waits for a request batch."""

    steps: int
    since: float


def next_batch(waiting: Sequence[QueuedRequest], now: float, cap: int, window_s: float) -> list[int] | float:
    """Return the queue positions to start now, or the seconds to wait.

    A pipeline call requires equal step counts. A batch starts when it is full, or when its oldest request has waited
    `window_s`. The oldest request goes first.
    """
    groups: dict[int, list[int]] = {}
    for place, one in enumerate(waiting):
        groups.setdefault(one.steps, []).append(place)
    for places in groups.values():
        if len(places) >= cap or now - waiting[places[0]].since >= window_s:
            return places[:cap]
    return min((waiting[places[0]].since + window_s - now for places in groups.values()), default=window_s)
