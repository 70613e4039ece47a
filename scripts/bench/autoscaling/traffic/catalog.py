"""The catalog of traffic shapes: scenarios of one model, each with its own traffic, work, start time and promise.

Half of the shapes (`design`) may be looked at when a default is chosen. The other half is for reports only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.scaling import Scaling
from controller.simulator.model_sim import WorkerProfile, batch_slowdowns
from controller.simulator.request_work import RequestCosts
from controller.simulator.scenarios import Scenario, Traffic, add_bunches, merge_traffic, scale_work, slice_traffic
from controller.simulator.traces import read_trace
from scripts.bench.autoscaling.traffic import generators as g

_HOUR_S = 3600.0
_H4, _H6, _DAY = 4 * _HOUR_S, 6 * _HOUR_S, 24 * _HOUR_S


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of traffic. Times are in seconds."""

    name: str
    traffic: Callable[[random.Random], Traffic]
    hours: float
    #: Whether it belongs to the half that defaults may be chosen on.
    design: bool
    max_workers: int = 16
    cold_start_s: float = 40.0
    max_wait_s: float = 10.0
    batch: int = 1

    def scenario(self) -> Scenario:
        """Return the scenario, always with the same random numbers."""
        profile = WorkerProfile("m", batch_slowdowns(self.batch, 1.0 if self.batch == 1 else 0.3), (self.cold_start_s,))
        scaling = Scaling(min_workers=1, max_workers=self.max_workers, slo={"max_wait_s": self.max_wait_s})
        traffic = self.traffic(random.Random(self.name))
        return Scenario({"m": traffic}, {"m": profile}, {"m": scaling}, self.max_workers, self.hours * _HOUR_S)


def _normal(arrivals: Callable[[random.Random], list[float]], mean_s: float, cv: float) -> Callable[..., Traffic]:
    return lambda rng: g.log_normal(arrivals(rng), mean_s, cv, rng)


def _flash(rng: random.Random, hours: float, base: float, factor: float, at_hours: tuple[float, ...]) -> list[float]:
    """Return steady arrivals that grow by `factor` within 10 s, for five minutes at a time."""

    def rate(at: float) -> float:
        since = min((at - hour * _HOUR_S for hour in at_hours if at >= hour * _HOUR_S), default=1e9)
        return base * (1 + (factor - 1) * min(since / 10, 1)) if since < 300 else base

    return g.poisson(rate, base * factor, hours * _HOUR_S, rng)


def _full_hours(rng: random.Random, hours: int, base: float, size: int, within_s: float) -> list[float]:
    starts = [hour * _HOUR_S for hour in range(1, hours)]
    return g.merged(g.steady(base, hours * _HOUR_S, rng), g.bunched(starts, size, within_s, rng))


def made_up() -> Iterator[Shape]:
    """Yield the shapes that need no recorded trace."""
    for group in (_periods, _bunches, _work, _steps_of_the_rate, _quiet_and_mixed):
        yield from group()


def _periods() -> Iterator[Shape]:
    yield Shape("square 2/s, period 90 s", _normal(lambda r: g.square(2, 90, _H4, r), 3, 0.7), 4, design=True)
    yield Shape("square 2/s, period 600 s", _normal(lambda r: g.square(2, 600, _H6, r), 3, 0.7), 6, design=False)
    yield Shape("square 1.5/s, period 30 s", _normal(lambda r: g.square(1.5, 30, _H4, r), 4, 0.7), 4, design=False)
    yield Shape("square 2/s, period 240 s", _normal(lambda r: g.square(2, 240, _H4, r), 3, 0.7), 4, design=True)
    yield Shape("square 2/s, period 30 min", _normal(lambda r: g.square(2, 1800, _H6, r, 0.1), 3, 0.7), 6, design=True)
    yield Shape("square 1/s, period 6 h", _normal(lambda r: g.square(1, 21600, _DAY, r, 0.1), 4, 0.7), 24, design=False)
    yield Shape("sine, period 20 min", _normal(lambda r: g.sine(1, 0.8, 1200, _H6, r), 4, 0.7), 6, design=False)
    yield Shape("sine, period 3 h", _normal(lambda r: g.sine(1, 0.9, 10800, _DAY / 2, r), 4, 0.7), 12, design=True)
    yield Shape(
        "5 at once every 10 s", _normal(lambda r: g.bunched(g.every(10, _H4, 0, r), 5, 0, r), 3, 0.5), 4, design=False
    )
    yield Shape(
        "30 at once every 90 s", _normal(lambda r: g.bunched(g.every(90, _H4, 0, r), 30, 0, r), 3, 0.3), 4, design=False
    )
    yield Shape(
        "20 within 5 s every 5 min",
        _normal(lambda r: g.bunched(g.every(300, _H6, 0, r), 20, 5, r), 4, 0.7),
        6,
        design=True,
    )
    yield Shape("60 at each full hour", _normal(lambda r: _full_hours(r, 12, 0.1, 60, 20), 4, 0.7), 12, design=False)
    yield Shape(
        "regular: one of 4.5 s every 12 s", _normal(lambda r: g.every(12, _H6, 0, r), 4.5, 0.0), 6, design=False
    )
    yield Shape("regular: one of 3 s every 2 s", _normal(lambda r: g.every(2, _H4, 0.2, r), 3, 0.0), 4, design=True)


def _bunches() -> Iterator[Shape]:
    for size, mean_s, design in ((2, 4, False), (5, 4, True), (20, 2, False), (100, 1, True)):
        yield Shape(
            f"bunches of {size}",
            _normal(lambda r, n=size: g.bunched(g.steady(0.5 / n, _H6, r), n, 2, r), mean_s, 0.7),  # type: ignore[misc]
            6,
            design=design,
            max_workers=24,
        )


def _work() -> Iterator[Shape]:
    yield Shape("4 % of 50 s among 1 s", lambda r: g.two_sizes(g.steady(0.5, _H6, r), 1, 50, 0.04, r), 6, design=True)
    for cv, design in ((0.0, False), (2.0, True), (3.0, False), (5.0, True)):
        yield Shape(
            f"work with cv {cv:g}", _normal(lambda r: g.steady(0.7, _H6, r), 4, cv), 6, design=design, max_workers=24
        )
    yield Shape("tiny work, 20/s", _normal(lambda r: g.wandering(20, 0.1, 60, _H4 / 2, r), 0.2, 1), 2, design=False)


def _steps_of_the_rate() -> Iterator[Shape]:
    yield Shape("ramp 0.1 to 2/s in 4 h", _normal(lambda r: g.ramp(0.1, 2, _H4, r), 4, 0.7), 4, design=False)
    yield Shape(
        "ramp 0.1 to 3/s in 30 min",
        _normal(lambda r: g.ramp(0.1, 3, 1800, r), 4, 0.7),
        0.5,
        design=True,
        max_workers=24,
    )
    yield Shape(
        "steps of an hour", _normal(lambda r: g.steps([0.2, 1, 0.4, 1.6, 0.1, 0.8], _HOUR_S, r), 4, 0.7), 6, design=True
    )
    yield Shape("x20 for 5 min", _normal(lambda r: _flash(r, 12, 0.1, 20, (2, 5, 8, 11)), 3, 0.7), 12, design=True)
    yield Shape("x4 for 5 min", _normal(lambda r: _flash(r, 12, 0.3, 4, (1.5, 3, 5.2, 9)), 3, 0.7), 12, design=False)
    yield Shape(
        "step 0.3 to 4/s, starts of 5 s, 5 s allowed",
        _normal(lambda r: g.steps([0.3, 4], 600, r), 1, 0.2),
        1 / 3,
        design=False,
        cold_start_s=5,
        max_wait_s=5,
    )


def _quiet_and_mixed() -> Iterator[Shape]:
    yield Shape(
        "quiet: 1 a minute of 25 to 32 s",
        lambda r: g.uniform_work(g.steady(1 / 60, _DAY, r), 25, 32, r),
        24,
        design=True,
    )
    yield Shape("quiet: 1 in 5 min of 20 s", _normal(lambda r: g.steady(1 / 300, _DAY, r), 20, 0.5), 24, design=False)
    yield Shape("quiet: 1 a minute of 5 s", _normal(lambda r: g.steady(1 / 60, _DAY, r), 5, 1), 24, design=False)
    yield Shape(
        "switching rates, mean 10 min",
        _normal(lambda r: g.switching([0.05, 0.5, 1.5], 600, _H6, r), 4, 1),
        6,
        design=True,
    )
    yield Shape(
        "switching rates, mean 2 min", _normal(lambda r: g.switching([0, 1.5], 120, _H6, r), 3, 1), 6, design=False
    )
    yield Shape(
        "wandering rate, 3 s allowed",
        _normal(lambda r: g.wandering(0.8, 0.2, 120, _H6, r), 3, 1),
        6,
        design=False,
        max_wait_s=3,
    )
    yield Shape(
        "wandering rate, 60 s allowed",
        _normal(lambda r: g.wandering(0.5, 0.2, 120, _H6, r), 8, 1),
        6,
        design=True,
        max_wait_s=60,
        max_workers=40,
    )
    yield Shape(
        "wandering rate, starts of 120 s",
        _normal(lambda r: g.wandering(0.8, 0.15, 120, _H6, r), 4, 1),
        6,
        design=True,
        cold_start_s=120,
    )
    yield Shape(
        "wandering rate, starts of 5 s",
        _normal(lambda r: g.wandering(0.8, 0.2, 60, _H6, r), 4, 1),
        6,
        design=False,
        cold_start_s=5,
    )
    yield Shape("batches of 4", _normal(lambda r: g.wandering(1, 0.2, 120, _H6, r), 5, 1), 6, design=True, batch=4)
    yield Shape(
        "daily cycle, bunches of 8 and cv 2",
        _normal(
            lambda r: g.merged(g.sine(0.4, 0.8, _DAY, _DAY, r), g.bunched(g.steady(1 / 400, _DAY, r), 8, 3, r)), 4, 2
        ),
        24,
        design=False,
        max_workers=24,
    )


def recorded(folder: Path) -> Iterator[Shape]:
    """Yield the shapes made of recorded traces in the folder."""
    day = scale_work(merge_traffic(read_trace(folder / "gentd26_day.csv")), 0.25)
    servegen = merge_traffic(read_trace(folder / "servegen_mid_day.csv", RequestCosts(token_s=0.1)))

    def part(first: float, last: float, share: float, work: float) -> Callable[[random.Random], Traffic]:
        cut = scale_work(slice_traffic(day, first * _HOUR_S, last * _HOUR_S), work)
        return lambda rng: g.thinned(cut, share, rng) if share < 1 else cut

    yield Shape("trace, hours 0 to 8, thinned to a third", part(0, 8, 1 / 3, 1), 8, design=False)
    yield Shape("trace, hours 8 to 16, work x3, thinned to a third", part(8, 16, 1 / 3, 3), 8, design=True)
    yield Shape("trace, hours 14 to 22, thinned to a tenth", part(14, 22, 0.1, 2), 8, design=False)
    bunches = slice_traffic(day, 4 * _HOUR_S, 12 * _HOUR_S)
    yield Shape(
        "trace, hours 4 to 12, with bunches of 5", lambda _rng: add_bunches(bunches, 8 * _HOUR_S, 1), 8, design=True
    )
    shifted = merge_traffic(
        {"a": slice_traffic(day, 0, 12 * _HOUR_S), "b": slice_traffic(day, 12 * _HOUR_S, 24 * _HOUR_S)}
    )
    yield Shape("trace, both halves at once", lambda _rng: shifted, 12, design=False, max_workers=24)
    tokens = slice_traffic(servegen, 6 * _HOUR_S, 12 * _HOUR_S)
    yield Shape("ServeGen, hours 6 to 12", lambda _rng: tokens, 6, design=True, max_workers=24)


def all_shapes(folder: Path | None) -> Mapping[str, Shape]:
    """Return the shapes by name; without a folder only those that need no trace."""
    shapes = [*made_up(), *(recorded(folder) if folder else ())]
    return {shape.name: shape for shape in shapes}
