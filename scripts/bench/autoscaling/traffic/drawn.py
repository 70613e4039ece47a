"""Shapes of traffic with random parameters, to see what a policy does on traffic that it was not made for.

Each has its own kind of arrivals, mean work, variation of work, start time and allowed wait. Equal seeds give equal
shapes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from controller.simulator.scenarios import Traffic, merge_traffic, scale_work, slice_traffic
from controller.simulator.traces import read_trace
from scripts.bench.autoscaling.traffic import generators as g
from scripts.bench.autoscaling.traffic.catalog import Shape

_HOUR_S = 3600.0
#: Upper limit of the requests of a shape, so that none takes minutes to simulate.
_MAX_REQUESTS = 40_000


@dataclass(frozen=True, slots=True)
class _Load:
    """What the kinds of arrivals have in common: a mean rate per second, and a length in seconds."""

    rate: float
    until_s: float


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _steady(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    return "steady", g.steady(load.rate, load.until_s, rng)


def _regular(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    jitter = rng.choice((0.0, 0.2, 1.0))
    period_s = 1 / load.rate
    return f"regular, jitter {jitter:g}", sorted(g.every(period_s, load.until_s, jitter * period_s, rng))


def _square(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    period_s, low = _log_uniform(rng, 10, min(21600, load.until_s / 2)), rng.choice((0.0, 0.1, 0.3))
    high = 2 * load.rate / (1 + low)
    return f"square of {period_s:.0f} s, low {low:g}", g.square(high, period_s, load.until_s, rng, low * high)


def _sine(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    period_s, swing = _log_uniform(rng, 120, load.until_s), rng.uniform(0.4, 1)
    return f"sine of {period_s:.0f} s, swing {swing:.1f}", g.sine(load.rate, swing, period_s, load.until_s, rng)


def _clocked_bunches(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    size, within_s = round(_log_uniform(rng, 2, 100)), rng.choice((0.0, 2.0, 10.0))
    period_s = size / load.rate
    starts = g.every(period_s, load.until_s, 0, rng)
    return f"{size} every {period_s:.0f} s", g.bunched(starts, size, within_s, rng)


def _random_bunches(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    size, share = round(_log_uniform(rng, 2, 100)), rng.choice((0.2, 0.5, 1.0))
    bunches = g.bunched(g.steady(load.rate * share / size, load.until_s, rng), size, 2, rng)
    return f"bunches of {size}, {share:.0%} of all", g.merged(
        g.steady(load.rate * (1 - share) + 1e-9, load.until_s, rng), bunches
    )


def _ramp(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    factor = _log_uniform(rng, 3, 30)
    low, high = 2 * load.rate / (1 + factor), 2 * load.rate * factor / (1 + factor)
    first, last = (low, high) if rng.random() < 0.7 else (high, low)
    return f"ramp {first / load.rate:.2f} to {last / load.rate:.2f}", g.ramp(first, last, load.until_s, rng)


def _steps(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    each_s = _log_uniform(rng, 300, load.until_s / 3)
    factors = [_log_uniform(rng, 0.15, 3) for _ in range(int(load.until_s / each_s) + 1)]
    times = g.steps([load.rate * factor for factor in factors], each_s, rng)
    return f"steps of {each_s:.0f} s", [at for at in times if at < load.until_s]


def _flashes(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    factor, length_s = _log_uniform(rng, 2, 20), _log_uniform(rng, 60, 900)
    starts = [rng.uniform(0.1, 0.95) * load.until_s for _ in range(rng.randint(2, 6))]
    base = load.rate / (1 + len(starts) * length_s * (factor - 1) / load.until_s)

    def rate(at: float) -> float:
        return base * factor if any(start <= at < start + length_s for start in starts) else base

    return f"{len(starts)} times x{factor:.0f} for {length_s:.0f} s", g.poisson(rate, base * factor, load.until_s, rng)


def _switching(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    mean_s, low = _log_uniform(rng, 60, 3600), rng.choice((0.0, 0.1, 0.4))
    rates = [low * load.rate, (2 - low) * load.rate]
    return f"switching, mean {mean_s:.0f} s, low {low:g}", g.switching(rates, mean_s, load.until_s, rng)


def _wandering(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    each_s, spread = rng.choice((60.0, 120.0, 300.0)), rng.uniform(0.1, 0.3)
    return f"wandering {spread:.2f} each {each_s:.0f} s", g.wandering(load.rate, spread, each_s, load.until_s, rng)


def _mixture(load: _Load, rng: random.Random) -> tuple[str, list[float]]:
    half = _Load(load.rate / 2, load.until_s)
    (one, times), (other, more) = (kind(half, rng) for kind in rng.sample(_KINDS[1:-1], 2))
    return f"{one} and {other}", g.merged(times, more)


_KINDS: tuple[Callable[[_Load, random.Random], tuple[str, list[float]]], ...] = (
    _steady,
    _regular,
    _square,
    _sine,
    _clocked_bunches,
    _random_bunches,
    _ramp,
    _steps,
    _flashes,
    _switching,
    _wandering,
    _mixture,
)


def _busiest(traffic: Traffic, window_s: float = 60.0) -> float:
    """Return the largest work in seconds that arrives within one window."""
    sums: dict[int, float] = {}
    for at, work in zip(traffic.times, traffic.work, strict=True):
        sums[int(at // window_s)] = sums.get(int(at // window_s), 0.0) + work
    return max(sums.values(), default=0.0)


def _traffic(kind: int, traces: Path | None, rng: random.Random) -> tuple[str, Traffic, float]:
    """Return a name, the traffic and its length in seconds."""
    until_s, mean_s = rng.choice((3.0, 6.0, 12.0)) * _HOUR_S, _log_uniform(rng, 0.4, 30)
    if kind == len(_KINDS):
        assert traces is not None
        day = scale_work(merge_traffic(read_trace(traces / "gentd26_day.csv")), 0.25 * rng.choice((0.5, 1, 2, 4)))
        first, share = rng.uniform(0, 24 * _HOUR_S - until_s), rng.choice((1, 0.5, 0.2, 0.1))
        cut = g.thinned(slice_traffic(day, first, first + until_s), share, rng)
        return f"trace from hour {first / _HOUR_S:.1f}, share {share:g}", cut, until_s
    rate = min(_log_uniform(rng, 0.3, 8) / mean_s, _MAX_REQUESTS / until_s)
    name, times = _KINDS[kind](_Load(rate, until_s), rng)
    cv = rng.choice((0.0, 0.5, 0.7, 1.0, 2.0, 4.0))
    return f"{name}, work {mean_s:.1f} s cv {cv:g}", g.log_normal(times, mean_s, cv, rng), until_s


def drawn(count: int, seed: int, traces: Path | None = None) -> Iterator[Shape]:
    """Yield `count` shapes, each kind in turn; with a folder of traces also parts of a recorded day."""
    kinds = len(_KINDS) + (traces is not None)
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        name, traffic, until_s = _traffic(number % kinds, traces, rng)
        cold_start_s, wait_s = rng.choice((5.0, 20.0, 40.0, 40.0, 120.0)), rng.choice((3.0, 10.0, 10.0, 30.0, 60.0))
        batch = rng.choice((1, 1, 1, 4))
        peak = _busiest(traffic) / 60
        yield Shape(
            f"{number}: {name}; starts of {cold_start_s:g} s, {wait_s:g} s allowed" + f", batch {batch}" * (batch > 1),
            lambda _rng, traffic=traffic: traffic,  # type: ignore[misc]
            until_s / _HOUR_S,
            design=False,
            max_workers=max(4, math.ceil(1.5 * peak) + 2),
            cold_start_s=cold_start_s,
            max_wait_s=wait_s,
            batch=batch,
        )


def quiet_days(count: int, seed: int) -> Iterator[Shape]:
    """Yield `count` days with a request each 15 s to 30 min on average."""
    for number in range(count):
        rng = random.Random(f"quiet {seed} {number}")
        day_s, every_s, mean_s = 24 * _HOUR_S, _log_uniform(rng, 15, 1800), _log_uniform(rng, 1, 60)
        kind, cv = rng.choice(("steady", "steady", "daily", "pairs")), rng.choice((0.0, 0.1, 0.5, 1.0))
        cold_start_s, wait_s = rng.choice((10.0, 40.0, 40.0, 90.0)), rng.choice((5.0, 10.0, 10.0, 30.0))
        match kind:
            case "daily":
                times = g.sine(1 / every_s, 0.9, day_s, day_s, rng)
            case "pairs":
                times = g.bunched(g.steady(0.5 / every_s, day_s, rng), 2, 2, rng)
            case _:
                times = g.steady(1 / every_s, day_s, rng)
        traffic = g.log_normal(times, mean_s, cv, rng)
        yield Shape(
            f"{number}: {kind}, one in {every_s:.0f} s, work {mean_s:.1f} s cv {cv:g}; starts of {cold_start_s:g} s, "
            f"{wait_s:g} s allowed",
            lambda _rng, traffic=traffic: traffic,  # type: ignore[misc]
            24,
            design=False,
            cold_start_s=cold_start_s,
            max_wait_s=wait_s,
        )


def busy_hours(count: int, seed: int) -> Iterator[Shape]:
    """Yield `count` loads of four hours with 5 to 50 requests per second on average, and short allowed waits."""
    for number in range(count):
        rng = random.Random(f"busy {seed} {number}")
        hours, rate, mean_s = 4, _log_uniform(rng, 5, 50), _log_uniform(rng, 0.2, 2)
        kind = (_steady, _wandering, _wandering, _sine, _steps)[number % 5]
        cv, batch = rng.choice((0.0, 0.5, 1.0, 2.0)), rng.choice((1, 1, 4))
        cold_start_s, wait_s = rng.choice((5.0, 20.0, 40.0, 90.0)), _log_uniform(rng, 0.5, 5)
        name, times = kind(_Load(rate, hours * _HOUR_S), rng)
        traffic = g.log_normal(times, mean_s, cv, rng)
        yield Shape(
            f"{number}: {name}, {rate:.0f}/s, work {mean_s:.1f} s cv {cv:g}; starts of {cold_start_s:g} s, "
            f"{wait_s:.1f} s allowed" + f", batch {batch}" * (batch > 1),
            lambda _rng, traffic=traffic: traffic,  # type: ignore[misc]
            hours,
            design=False,
            max_workers=max(4, math.ceil(2 * _busiest(traffic) / 60)),
            cold_start_s=cold_start_s,
            max_wait_s=wait_s,
            batch=batch,
        )
