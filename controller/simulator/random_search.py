"""Which settings to try: first anywhere, then near the best so far. Pure: equal seeds try the same."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from configs.scaling import Scaling
from controller.simulator.results import Row

#: A field's place in the configuration, and its value.
Settings = dict[str, float]


class Range(NamedTuple):
    """Between which values a field is looked for: evenly on a scale of factors."""

    low: float
    high: float

    def any(self, chance: random.Random) -> float:
        """One of them."""
        return self._rounded(math.exp(chance.uniform(math.log(self.low), math.log(self.high))))

    def near(self, value: float, chance: random.Random) -> float:
        """One not far from the value."""
        spread = math.log(self.high / self.low) / 8
        return self._rounded(min(max(value * math.exp(chance.gauss(0, spread)), self.low), self.high))

    @staticmethod
    def _rounded(value: float) -> float:
        return float(f"{value:.3g}")


def ranges(policy: str, scaling: Scaling, batch: int) -> Mapping[str, Range]:
    """What to look for with a policy, by the field's place; nothing where it has nothing to tune."""
    allowed = 1 - scaling.slo.percentile / 100
    counted = {"look_back_period_s": Range(20, 300)}
    known: dict[str, dict[str, Range]] = {
        "slo_work": {
            **counted,
            "rate_window_s": Range(300, 2400),
            "drain_s": Range(5, 60),
            "feedback.gain": Range(0.002, 0.05),
            "feedback.violation_target": Range(allowed / 5, allowed),
            "behavior.scale_down.stabilization_window_s": Range(5, 300),
        },
        "queue_depth": {
            "scale_up_at": Range(0.3 * batch, 4 * batch),
            "scale_down_at": Range(0.05 * batch, 0.29 * batch),
            "scale_down_hold_s": Range(10, 600),
            "scale_down_cooldown_s": Range(10, 300),
        },
        "ongoing_requests": {
            **counted,
            "target_ongoing_requests": Range(0.3 * batch, 1.5 * batch),
            "upscale_delay_s": Range(1, 60),
            "downscale_delay_s": Range(20, 900),
        },
    }
    return known.get(policy, {})


def tree(settings: Settings) -> dict[str, Any]:
    """`a.b` and the like as nested sections."""
    made: dict[str, Any] = {}
    for place, value in settings.items():
        *parents, last = place.split(".")
        node = made
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return made


class Tried(NamedTuple):
    """Settings and what came of them."""

    settings: Settings
    row: Row

    def worse_by(self, goal: float) -> tuple[float, float]:
        """What to make small: first what is missing to the goal, then the cost."""
        return max(goal - self.row.in_slo, 0.0), self.row.gpu_hours


def search(
    space: Mapping[str, Range],
    goal: float,
    tries: int,
    evaluate: Callable[[Sequence[Settings]], Sequence[Row]],
    *,
    seed: int = 0,
    at_once: int = 8,
) -> Tried:
    """The settings that reach the goal at the fewest GPU-hours, or come nearest to it. The first try changes nothing.

    `evaluate` gives a row for each of the settings.
    """
    chance = random.Random(seed)
    best: Tried | None = None
    done = 0
    while done < tries:
        number = min(at_once, tries - done)
        candidates = [_candidate(space, best, done + n, tries, chance) for n in range(number)]
        for tried in map(Tried, candidates, evaluate(candidates)):
            if best is None or tried.worse_by(goal) < best.worse_by(goal):
                best = tried
        done += number
    assert best is not None
    return best


def _candidate(
    space: Mapping[str, Range], best: Tried | None, number: int, tries: int, chance: random.Random
) -> Settings:
    if number == 0 or not space:
        return {}
    if best is None or not best.settings or number < tries / 3:
        return {place: scale.any(chance) for place, scale in space.items()}
    changed = [place for place in space if chance.random() < 0.5] or list(space)
    return {
        place: scale.near(best.settings[place], chance) if place in changed else best.settings[place]
        for place, scale in space.items()
    }
