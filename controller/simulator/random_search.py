"""Random search of policy settings: first uniform, then near the best so far. Equal seeds give equal results."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from configs.scaling import Scaling
from controller.simulator.results import PolicyResult

#: Values by dotted path in the scaling configuration.
ParameterValues = dict[str, float]
#: Candidates that are evaluated in parallel.
AT_ONCE = 8


class ParameterRange(NamedTuple):
    """Range of a field, searched on a logarithmic scale."""

    low: float
    high: float

    def sample(self, rng: random.Random) -> float:
        """Draw a value from the whole range."""
        return self._rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))

    def sample_near(self, value: float, rng: random.Random) -> float:
        """Draw a value near another one."""
        spread = math.log(self.high / self.low) / 8
        return self._rounded(min(max(value * math.exp(rng.gauss(0, spread)), self.low), self.high))

    @staticmethod
    def _rounded(value: float) -> float:
        return float(f"{value:.3g}")


def search_space(policy: str, scaling: Scaling, batch: int) -> Mapping[str, ParameterRange]:
    """Return the ranges of a policy's fields by dotted path; empty if it has nothing to tune."""
    allowed = 1 - scaling.slo.percentile / 100
    look_back = {"look_back_period_s": ParameterRange(20, 300)}
    spaces: dict[str, dict[str, ParameterRange]] = {
        "slo_work": {
            **look_back,
            "rate_window_s": ParameterRange(300, 2400),
            "drain_s": ParameterRange(5, 60),
            "feedback.gain": ParameterRange(0.002, 0.05),
            "feedback.violation_target": ParameterRange(allowed / 5, allowed),
            "behavior.scale_down.stabilization_window_s": ParameterRange(5, 300),
        },
        "queue_depth": {
            "scale_up_at": ParameterRange(0.3 * batch, 4 * batch),
            "scale_down_at": ParameterRange(0.05 * batch, 0.29 * batch),
            "scale_down_hold_s": ParameterRange(10, 600),
            "scale_down_cooldown_s": ParameterRange(10, 300),
        },
        "ongoing_requests": {
            **look_back,
            "target_ongoing_requests": ParameterRange(0.3 * batch, 1.5 * batch),
            "upscale_delay_s": ParameterRange(1, 60),
            "downscale_delay_s": ParameterRange(20, 900),
        },
    }
    return spaces.get(policy, {})


class SearchCandidate(NamedTuple):
    """Values and their simulated result."""

    settings: ParameterValues
    result: PolicyResult

    def loss(self, goal: float) -> tuple[float, float]:
        """Return the loss to minimize: first the shortfall from the goal, then the cost."""
        return max(goal - self.result.in_slo, 0.0), self.result.gpu_hours


def search(
    space: Mapping[str, ParameterRange],
    goal: float,
    tries: int,
    evaluate: Callable[[Sequence[ParameterValues]], Sequence[PolicyResult]],
    *,
    seed: int = 0,
    at_once: int = AT_ONCE,
) -> SearchCandidate:
    """Return the values that meet the goal with the fewest GPU-hours, or come closest to it.

    The first candidate is the unchanged configuration. `evaluate` returns a result for each of the candidates.
    """
    rng = random.Random(seed)
    best: SearchCandidate | None = None
    done = 0
    while done < tries:
        number = min(at_once, tries - done)
        candidates = [_candidate(space, best, done + n, tries, rng) for n in range(number)]
        for candidate in map(SearchCandidate, candidates, evaluate(candidates)):
            if best is None or candidate.loss(goal) < best.loss(goal):
                best = candidate
        done += number
    assert best is not None
    return best


def _candidate(
    space: Mapping[str, ParameterRange], best: SearchCandidate | None, number: int, tries: int, rng: random.Random
) -> ParameterValues:
    if number == 0 or not space:
        return {}
    if best is None or not best.settings or number < tries / 3:
        return {place: parameter.sample(rng) for place, parameter in space.items()}
    with_fields = [place for place in space if rng.random() < 0.5] or list(space)
    return {
        place: parameter.sample_near(best.settings[place], rng) if place in with_fields else best.settings[place]
        for place, parameter in space.items()
    }
