"""Pure generators of arrival times and of work. Times are in seconds; equal random generators give equal results."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence

from controller.simulator.scenarios import Traffic

Rate = Callable[[float], float]


def poisson(rate: Rate, max_rate: float, until_s: float, rng: random.Random) -> list[float]:
    """Return arrivals of a Poisson process with the time-dependent `rate`, which is at most `max_rate` per second."""
    times, at = [], 0.0
    while (at := at + rng.expovariate(max_rate)) < until_s:
        if rng.random() * max_rate < rate(at):
            times.append(at)
    return times


def steady(rate: float, until_s: float, rng: random.Random) -> list[float]:
    return poisson(lambda _: rate, rate, until_s, rng)


def square(rate: float, period_s: float, until_s: float, rng: random.Random, low: float = 0.0) -> list[float]:
    """Return Poisson arrivals with `rate` in the first half of each period and `low` in the second."""
    return poisson(lambda at: rate if at % period_s < period_s / 2 else low, rate, until_s, rng)


def sine(mean: float, swing: float, period_s: float, until_s: float, rng: random.Random) -> list[float]:
    """Return Poisson arrivals with the rate `mean * (1 - swing * cos)`."""
    return poisson(
        lambda at: mean * (1 - swing * math.cos(2 * math.pi * at / period_s)), mean * (1 + swing), until_s, rng
    )


def ramp(first: float, last: float, until_s: float, rng: random.Random) -> list[float]:
    """Return Poisson arrivals whose rate changes linearly."""
    return poisson(lambda at: first + (last - first) * at / until_s, max(first, last), until_s, rng)


def steps(rates: Sequence[float], each_s: float, rng: random.Random) -> list[float]:
    """Return Poisson arrivals with each of the rates for `each_s`."""
    return poisson(lambda at: rates[int(at // each_s)], max(rates), len(rates) * each_s - 1e-6, rng)


def switching(rates: Sequence[float], mean_s: float, until_s: float, rng: random.Random) -> list[float]:
    """Return Poisson arrivals whose rate changes to a random one of `rates` after exponential times."""
    times: list[float] = []
    at = 0.0
    while at < until_s:
        length_s, rate = rng.expovariate(1 / mean_s), rng.choice(rates)
        if rate:
            times += [at + offset for offset in steady(rate, min(length_s, until_s - at), rng)]
        at += length_s
    return times


def wandering(rate: float, spread: float, each_s: float, until_s: float, rng: random.Random) -> list[float]:
    """Return Poisson arrivals whose rate is a random walk in its logarithm, drawn back to `rate`."""
    factors, log = [], 0.0
    for _ in range(int(until_s // each_s) + 1):
        factors.append(min(math.exp(log), 8.0))
        log = 0.95 * log + rng.gauss(0, spread)
    return poisson(lambda at: rate * factors[int(at // each_s)], rate * max(factors), until_s, rng)


def every(period_s: float, until_s: float, jitter_s: float, rng: random.Random) -> list[float]:
    """Return one arrival per period, late by up to `jitter_s`."""
    return [number * period_s + rng.uniform(0, jitter_s) for number in range(1, int(until_s // period_s))]


def bunched(starts: Iterable[float], size: int, within_s: float, rng: random.Random) -> list[float]:
    """Return `size` arrivals within `within_s` after each start."""
    return sorted(start + rng.uniform(0, within_s) for start in starts for _ in range(size))


def merged(*parts: Sequence[float]) -> list[float]:
    return sorted(at for part in parts for at in part)


def log_normal(times: Sequence[float], mean_s: float, cv: float, rng: random.Random) -> Traffic:
    """Return requests with log-normal work of this mean and coefficient of variation; 0 is constant work."""
    variance = math.log(1 + cv**2)
    mu, sigma = math.log(mean_s) - variance / 2, math.sqrt(variance)
    return Traffic(times, [rng.lognormvariate(mu, sigma) if cv else mean_s for _ in times])


def two_sizes(times: Sequence[float], small_s: float, large_s: float, share: float, rng: random.Random) -> Traffic:
    """Return requests of which the fraction `share` has the large work."""
    return Traffic(times, [large_s if rng.random() < share else small_s for _ in times])


def uniform_work(times: Sequence[float], low_s: float, high_s: float, rng: random.Random) -> Traffic:
    return Traffic(times, [rng.uniform(low_s, high_s) for _ in times])


def thinned(traffic: Traffic, share: float, rng: random.Random) -> Traffic:
    """Keep each request with the probability `share`."""
    pairs = [pair for pair in zip(traffic.times, traffic.work, strict=True) if rng.random() < share]
    return Traffic([at for at, _ in pairs], [work for _, work in pairs])
