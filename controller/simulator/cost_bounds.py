"""Bounds of the cost of a scenario: a lower one that no schedule beats, and the best schedule that a search finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from controller.simulator.option_checks import InvalidScenario
from controller.simulator.reference.linear_program import BoundUnavailable
from controller.simulator.reference.lower_bound import min_hours
from controller.simulator.reference.oracle import best_schedule
from controller.simulator.scenarios import Scenario
from controller.simulator.simulator import ignore_progress

#: Progress of the computation when the lower bounds are known.
_LOWER_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class CostBounds:
    """GPU-hours by model. Infinite: no schedule keeps the promise, or none was found."""

    #: Promised percentages of requests in time.
    percentiles: Mapping[str, float] = field(default_factory=dict)
    lower_hours: Mapping[str, float] = field(default_factory=dict)
    best_hours: Mapping[str, float] = field(default_factory=dict)
    #: GPU-hours of all models by the best known schedule.
    best_total_hours: float | None = None

    def of_model(self, model: str) -> tuple[float | None, float | None]:
        """Return the lower bound of a model and the cost of its best schedule, each None if unknown."""
        best = self.best_total_hours if not self.best_hours and len(self.percentiles) == 1 else None
        return self.lower_hours.get(model), self.best_hours.get(model, best)

    def total(self) -> tuple[float | None, float | None]:
        """Return both for all models together."""
        return (math.fsum(self.lower_hours.values()) if self.lower_hours else None), self.best_total_hours

    def notes(self) -> list[str]:
        """Return explanations for a table."""
        promise = ", ".join(f"{percentile:g} %" for percentile in sorted(set(self.percentiles.values())))
        lines = []
        if self.lower_hours:
            lines.append(f"bound: no schedule that serves {promise} in time has fewer GPU-h; none: no schedule does")
        if self.best_hours:
            lines.append("best: the cheapest such schedule found with all requests known; none: none was found")
        return lines


def cost_bounds(
    wanted: str | None, scenario: Scenario, on_progress: Callable[[float], None] = ignore_progress
) -> CostBounds:
    """Return the bounds of a scenario: none for None, a number as given, `lower` or `search`.

    Raises `InvalidScenario`.
    """
    percentiles = {name: scaling.slo.percentile for name, scaling in scenario.scalings.items()}
    if wanted is None:
        return CostBounds(percentiles)
    if wanted not in ("lower", "search"):
        return CostBounds(percentiles, best_total_hours=_given_hours(wanted))
    if wanted == "search" and scenario.has_failures:
        raise InvalidScenario("--bound search supports no failures (--mean-life, mean_life_s); --bound lower does")
    lower: dict[str, float] = {}
    best: dict[str, float] = {}
    models = [name for name in scenario.profiles if scenario.traffic[name].times]
    for number, name in enumerate(models):
        done = number / len(models)
        try:
            lower[name] = min_hours(scenario, name)
        except BoundUnavailable as error:
            raise InvalidScenario(f"--bound {wanted}: {error}") from None
        on_progress(done + _LOWER_SHARE / len(models))
        if wanted == "search":

            def report(share: float, done: float = done) -> None:
                on_progress(done + (_LOWER_SHARE + (1 - _LOWER_SHARE) * share) / len(models))

            found = best_schedule(with_single_model(scenario, name), on_progress=report)
            best[name] = math.inf if found is None else found.gpu_hours
    total = next(iter(best.values())) if len(scenario.profiles) == 1 and best else None
    return CostBounds(percentiles, lower, best, total)


def with_single_model(scenario: Scenario, model: str) -> Scenario:
    """Return the scenario with a single model, which may use the whole cluster."""
    return replace(
        scenario,
        traffic={model: scenario.traffic[model]},
        profiles={model: scenario.profiles[model]},
        scalings={model: scenario.scalings[model]},
    )


def _given_hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours < math.inf:
        raise InvalidScenario(f"--bound {text} must be a number of GPU-hours above 0, lower or search")
    return hours
