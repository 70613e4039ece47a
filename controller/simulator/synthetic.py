"""Made-up traffic of a known pattern. Pure: equal seeds give equal requests.

synthetic:poisson?rate=0.5&hours=24&work=4.5     independent requests, 0.5 a second
synthetic:daily?rate=0.5&swing=0.8               as above, with a rate that follows the day: 0.1 to 0.9 a second
synthetic:bursts?rate=0.5&burst=20&every=600     as above, and every ten minutes or so twenty within ten seconds
synthetic:onoff?rate=2&on=600&off=1800           ten minutes of traffic, half an hour of none
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

from controller.simulator.scenarios import Traffic
from controller.simulator.traces import TraceRefused

_PREFIX = "synthetic:"
_DAY_S = 86400.0
_BURST_S = 10.0
#: What every pattern knows, and its defaults: requests a second, hours, seconds of work and their spread.
_USUAL = {"rate": 0.5, "hours": 24.0, "work": 4.5, "cv": 0.7}
_OWN: Mapping[str, Mapping[str, float]] = {
    "poisson": {},
    "daily": {"swing": 0.8},
    "bursts": {"burst": 20.0, "every": 600.0},
    "onoff": {"on": 600.0, "off": 1800.0},
}


def is_synthetic(text: str) -> bool:
    """Whether this names a pattern, not a file."""
    return text.startswith(_PREFIX)


def make(text: str, seed: int = 0) -> Traffic:
    """The traffic that the text describes. Raises `TraceRefused`."""
    pattern, _, given = text.removeprefix(_PREFIX).partition("?")
    if pattern not in _OWN:
        raise TraceRefused(f"no such pattern: {pattern}; allowed: {', '.join(_OWN)}")
    options = {**_USUAL, **_OWN[pattern]}
    for key, value in parse_qsl(given, keep_blank_values=True):
        if key not in options:
            raise TraceRefused(f"{pattern} has no option {key}; allowed: {', '.join(options)}")
        try:
            options[key] = float(value)
        except ValueError:
            raise TraceRefused(f"{key} ({value}) must be a number") from None
        if options[key] < 0 or not math.isfinite(options[key]):
            raise TraceRefused(f"{key} ({value}) must be a number, and not negative")
    chance = random.Random(seed)
    times = _arrivals(pattern, options, chance)
    return Traffic(times, [_work_s(options, chance) for _ in times])


def _arrivals(pattern: str, options: Mapping[str, float], chance: random.Random) -> list[float]:
    until, rate = options["hours"] * 3600, options["rate"]
    if pattern == "daily":
        swing = options["swing"]
        return _thinned(
            rate * (1 + swing), until, lambda at: rate * (1 - swing * math.cos(2 * math.pi * at / _DAY_S)), chance
        )
    if pattern == "onoff":
        period = options["on"] + options["off"]
        return _thinned(rate, until, lambda at: rate if at % period < options["on"] else 0.0, chance)
    steady = _thinned(rate, until, lambda _: rate, chance)
    if pattern == "bursts":
        begins = _thinned(1 / options["every"], until - _BURST_S, lambda _: 1 / options["every"], chance)
        burst = [at + chance.uniform(0, _BURST_S) for at in begins for _ in range(int(options["burst"]))]
        return sorted(steady + burst)
    return steady


def _thinned(most: float, until: float, rate: Callable[[float], float], chance: random.Random) -> list[float]:
    """A Poisson process whose rate changes: made at its highest rate, of which each moment keeps its part."""
    times, at = [], 0.0
    while most > 0 and (at := at + chance.expovariate(most)) < until:
        if chance.random() * most <= rate(at):
            times.append(at)
    return times


def _work_s(options: Mapping[str, float], chance: random.Random) -> float:
    """Log-normal, of the mean and the coefficient of variation asked for."""
    spread = math.log(1 + options["cv"] ** 2)
    return chance.lognormvariate(math.log(options["work"]) - spread / 2, math.sqrt(spread)) if options["work"] else 0.0
