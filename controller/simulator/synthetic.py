"""Synthetic traffic patterns. Equal seeds give equal requests.

synthetic:poisson?rate=0.5&hours=24&work=4.5     Poisson arrivals, 0.5 requests/s
synthetic:daily?rate=0.5&swing=0.8               a daily cycle of the rate, 0.1 to 0.9 requests/s
synthetic:bursts?rate=0.5&burst=20&every=600     Poisson arrivals and, about every 10 minutes, 20 in 10 s
synthetic:onoff?rate=2&on=600&off=1800           10 minutes of traffic, 30 minutes without
synthetic:step?rate=4&before=0.3&at=600          0.3 requests/s for 10 minutes, 4 requests/s from then on
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

from controller.simulator.request_work import MAX_WORK_S
from controller.simulator.scenarios import Traffic
from controller.simulator.trace_rows import InvalidTrace

_PREFIX = "synthetic:"
_DAY_S = 86400.0
_BURST_S = 10.0
#: Each takes some hundred bytes.
_MAX_REQUESTS = 2e7
_MAX_VARIATION = 100.0
#: Most hours, a year, and most seconds of work.
_MAX_HOURS = 366 * 24
#: Options of every pattern: requests/s, hours, mean work in seconds and its coefficient of variation.
_DEFAULTS = {"rate": 0.5, "hours": 24.0, "work": 4.5, "cv": 0.7}
_PATTERN_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "poisson": {},
    "daily": {"swing": 0.8},
    "bursts": {"burst": 20.0, "every": 600.0},
    "onoff": {"on": 600.0, "off": 1800.0},
    "step": {"before": 0.1, "at": 600.0},
}


def is_synthetic(text: str) -> bool:
    return text.startswith(_PREFIX)


def synthetic_traffic(text: str, seed: int = 0) -> Traffic:
    """Return the traffic of a `synthetic:` description. Raises `InvalidTrace`."""
    pattern, _, given = text.removeprefix(_PREFIX).partition("?")
    if pattern not in _PATTERN_DEFAULTS:
        raise InvalidTrace(f"no such pattern: {pattern}; allowed: {', '.join(_PATTERN_DEFAULTS)}")
    options = {**_DEFAULTS, **_PATTERN_DEFAULTS[pattern]}
    for key, value in parse_qsl(given, keep_blank_values=True):
        if key not in options:
            raise InvalidTrace(f"{pattern} has no option {key}; allowed: {', '.join(options)}")
        try:
            options[key] = float(value)
        except ValueError:
            raise InvalidTrace(f"{key} ({value}) must be a number") from None
        if options[key] < 0 or not math.isfinite(options[key]):
            raise InvalidTrace(f"{key} ({value}) must be a number of at least 0")
    _check_size(pattern, options)
    rng = random.Random(seed)
    times = _arrivals(pattern, options, rng)
    return Traffic(times, [_work_s(options, rng) for _ in times])


def _check_size(pattern: str, options: Mapping[str, float]) -> None:
    """Raise `InvalidTrace` for a pattern without a period, or with more requests than can be held."""
    if options.get("every") == 0 or (pattern == "onoff" and options["on"] + options["off"] == 0):
        raise InvalidTrace("every, or on and off together, must be above 0")
    if options["cv"] > _MAX_VARIATION:
        raise InvalidTrace(f"cv ({options['cv']:g}) must be at most {_MAX_VARIATION:g}")
    if options.get("swing", 0) > 1:
        raise InvalidTrace(f"swing ({options['swing']:g}) must be at most 1")
    span_s = options["hours"] * 3600
    requests = max(options["rate"], options.get("before", 0)) * span_s + options.get("burst", 0) * span_s / options.get(
        "every", 1
    )
    if requests > _MAX_REQUESTS or span_s / options.get("every", span_s or 1) > _MAX_REQUESTS:
        raise InvalidTrace(f"{requests:.3g} requests are too many; at most {_MAX_REQUESTS:g} can be simulated")
    for name, most in (("hours", _MAX_HOURS), ("work", MAX_WORK_S)):
        if options[name] > most:
            raise InvalidTrace(f"{name} ({options[name]:g}) must be at most {most:g}")


def _arrivals(pattern: str, options: Mapping[str, float], rng: random.Random) -> list[float]:
    until, rate = options["hours"] * 3600, options["rate"]
    if pattern == "daily":
        swing = options["swing"]
        return _poisson_times(
            rate * (1 + swing), until, lambda at: rate * (1 - swing * math.cos(2 * math.pi * at / _DAY_S)), rng
        )
    if pattern == "onoff":
        period = options["on"] + options["off"]
        return _poisson_times(rate, until, lambda at: rate if at % period < options["on"] else 0.0, rng)
    if pattern == "step":
        before, change_s = options["before"], options["at"]
        return _poisson_times(max(before, rate), until, lambda at: before if at < change_s else rate, rng)
    steady = _poisson_times(rate, until, lambda _: rate, rng)
    if pattern == "bursts":
        burst_starts = _poisson_times(1 / options["every"], until - _BURST_S, lambda _: 1 / options["every"], rng)
        burst = [at + rng.uniform(0, _BURST_S) for at in burst_starts for _ in range(int(options["burst"]))]
        return sorted(steady + burst)
    return steady


def _poisson_times(max_rate: float, until: float, rate: Callable[[float], float], rng: random.Random) -> list[float]:
    """Return arrivals of an inhomogeneous Poisson process by thinning one of the maximum rate."""
    times, at = [], 0.0
    while max_rate > 0 and (at := at + rng.expovariate(max_rate)) < until:
        if rng.random() * max_rate <= rate(at):
            times.append(at)
    return times


def _work_s(options: Mapping[str, float], rng: random.Random) -> float:
    """Draw log-normal work by mean and coefficient of variation."""
    variance = math.log(1 + options["cv"] ** 2)
    return rng.lognormvariate(math.log(options["work"]) - variance / 2, math.sqrt(variance)) if options["work"] else 0.0
