"""Who asks for what and when, and what is made of the times of the answers. Pure: every clock is passed in."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from wire.messages import ImageInputs


@dataclass(eq=False)
class BenchRequest:
    """A request of a load. Times are seconds on one clock, whichever the caller reads."""

    task: str
    inputs: ImageInputs
    #: Whose it is, where users wait for an answer before they ask again.
    user: int = 0
    arrived: float = 0.0
    #: When its encoded picture was there; None before.
    finished: float | None = None
    error: str = ""


class Steps(NamedTuple):
    """How many steps requests ask for: any number from `low` to `high`, equally often."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Steps:
        """From `25` or `10-50`. Raises `ValueError`."""
        low, _, high = text.partition("-")
        made = cls(int(low), int(high or low))
        if not 1 <= made.low <= made.high:
            raise ValueError(f"not a number of steps, nor a range from low to high: {text}")
        return made

    @property
    def mean(self) -> float:
        """Expected steps of a request."""
        return (self.low + self.high) / 2

    @property
    def mixed(self) -> bool:
        """Whether requests differ in their steps."""
        return self.low != self.high


def request_stream(base: ImageInputs, steps: Steps, name: str, user: int = 0) -> Iterator[BenchRequest]:
    """Requests without end, no two with one prompt or seed; equal for an equal `name`."""
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
    """Times in [0, seconds) at which requests come that know nothing of each other, `rate` a second on average.

    There are exactly as many as the rate says, so that a short trace is as heavy as a long one: a Poisson process whose
    number is given spreads that number evenly at random.
    """
    rng = random.Random(name)
    return sorted(rng.uniform(0, seconds) for _ in range(max(round(rate * seconds), 1)))


def completion_rate(times: Sequence[float], amounts: Sequence[float], since: float, until: float) -> float:
    """Amount per second of what was finished at these times, all of them between `since` and `until`.

    It is the slope of the sum over time, by least squares: a count would be wrong by up to a whole batch at either
    end, wherever batches finish at once. Where the times lie too close together for that, it is the count.
    """
    order = np.argsort(times, kind="stable")
    at = np.asarray(times, float)[order]
    if len(at) < 2 or at[-1] - at[0] < (until - since) / 2:
        return float(sum(amounts)) / (until - since)
    return float(np.polyfit(at - at[0], np.cumsum(np.asarray(amounts, float)[order]), 1)[0])


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values is not above; not a number where there are none."""
    return float(np.quantile(values, share)) if len(values) else float("nan")


def best_batch(seconds: dict[int, float], min_gain: float) -> int:
    """The batch to use, of the seconds that each takes: larger ones as long as they bring more images per second.

    A batch is only taken for a gain of `min_gain` over the best smaller one, as the worker does for its own cap.
    """
    best, best_rate = 1, 0.0
    for batch, took in sorted(seconds.items()):
        if batch / took > (1 + min_gain) * best_rate:
            best, best_rate = batch, batch / took
    return best


class QueuedRequest(NamedTuple):
    """A request that waits for a whole-request batch."""

    steps: int
    since: float


def next_batch(waiting: Sequence[QueuedRequest], now: float, cap: int, window_s: float) -> list[int] | float:
    """Places in the queue of those that start now, or seconds to wait.

    Only equal step counts can share a call of a pipeline. A batch starts when it is full, or when its oldest request
    has waited `window_s`; the oldest goes first.
    """
    groups: dict[int, list[int]] = {}
    for place, one in enumerate(waiting):
        groups.setdefault(one.steps, []).append(place)
    for places in groups.values():
        if len(places) >= cap or now - waiting[places[0]].since >= window_s:
            return places[:cap]
    return min((waiting[places[0]].since + window_s - now for places in groups.values()), default=window_s)
