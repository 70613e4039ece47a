"""Metrics of a simulation per policy and model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from controller.simulator.model_sim import ModelSim, quantile
from controller.simulator.simulator import SimulationResult


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """Metrics of one policy on one model. Times are in seconds, shares between 0 and 1."""

    policy: str
    model: str
    requests: int
    unserved: int
    in_slo: float
    wait_p50_s: float
    wait_p99_s: float
    #: From arrival to completion.
    total_p99_s: float
    gpu_hours: float
    cold_starts: int
    #: Ticks that started or drained workers.
    changes: int
    crashes: int
    #: GPU-hours that full batches would need, divided by `gpu_hours`.
    utilisation: float
    #: `gpu_hours` divided by those of the best known schedule; None without such a schedule.
    ratio: float | None = None
    #: GPU-hours that no schedule can go below if it keeps the promise; None if unknown, infinite if none keeps it.
    lower_bound_hours: float | None = None
    #: GPU-hours of the best known schedule that keeps the promise; None if unknown.
    best_hours: float | None = None
    #: Requests that left the queue at their deadline. They are not in time.
    expired: int = 0

    def with_bounds(self, lower_hours: float | None, best_hours: float | None) -> PolicyResult:
        """Return the result with a lower bound, and with its ratio to the best known schedule."""
        ratio = self.gpu_hours / best_hours if best_hours else None
        return replace(self, ratio=ratio, lower_bound_hours=lower_hours, best_hours=best_hours)

    def as_json(self) -> dict[str, Any]:
        """Return the fields with None for infinite numbers and NaN, which JSON cannot represent."""
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in asdict(self).items()}


def min_gpu_hours(model: ModelSim) -> float:
    """Return the GPU-hours of all work in the most efficient batches without idle time.

    A request with a deadline may leave unserved, so its work does not count.
    """
    owed = [one.deadline_s == math.inf for one in model.urgencies] or [True] * len(model.work)
    return _gpu_hours(model, owed)


def _gpu_hours(model: ModelSim, included: Iterable[bool]) -> float:
    speed = max(tasks / slowdown for tasks, slowdown in enumerate(model.profile.slowdowns, 1))
    return sum(itertools.compress(model.work, included)) / speed / 3600


def model_results(policy: str, result: SimulationResult) -> list[PolicyResult]:
    """Return the metrics of each model."""
    return [_model_result(policy, model, result.changes[name]) for name, model in result.models.items()]


def _model_result(policy: str, model: ModelSim, changes: int) -> PolicyResult:
    # A request that no worker took counts as an infinite wait.
    waits = sorted(math.inf if math.isnan(wait) else wait for wait in model.waits)
    totals = sorted(end - arrival for arrival, end in zip(model.times, model.ends, strict=True) if not math.isnan(end))
    hours = model.worker_s / 3600
    in_time = sum(wait <= model.profile.max_wait_s for wait in waits)
    return PolicyResult(
        policy=policy,
        model=model.profile.model,
        requests=len(waits),
        unserved=len(waits) - model.done,
        in_slo=in_time / len(waits) if waits else 1.0,
        wait_p50_s=quantile(waits, 0.5),
        wait_p99_s=quantile(waits, 0.99),
        total_p99_s=quantile(totals, 0.99),
        gpu_hours=hours,
        cold_starts=model.starts,
        changes=changes,
        crashes=model.crashes,
        utilisation=_gpu_hours(model, (not math.isnan(wait) for wait in model.waits)) / hours if hours else 0.0,
        expired=model.expired,
    )


def total_result(policy: str, parts: Sequence[PolicyResult]) -> PolicyResult:
    """Combine the results of all models. Quantiles are those of the worst model."""
    requests = sum(part.requests for part in parts)
    hours = sum(part.gpu_hours for part in parts)
    return PolicyResult(
        policy=policy,
        model="all",
        requests=requests,
        unserved=sum(part.unserved for part in parts),
        in_slo=sum(part.in_slo * part.requests for part in parts) / requests if requests else 1.0,
        wait_p50_s=_largest(part.wait_p50_s for part in parts),
        wait_p99_s=_largest(part.wait_p99_s for part in parts),
        total_p99_s=_largest(part.total_p99_s for part in parts),
        gpu_hours=hours,
        cold_starts=sum(part.cold_starts for part in parts),
        changes=sum(part.changes for part in parts),
        crashes=sum(part.crashes for part in parts),
        expired=sum(part.expired for part in parts),
        utilisation=sum(part.utilisation * part.gpu_hours for part in parts) / hours if hours else 0.0,
    )


def _largest(values: Iterable[float]) -> float:
    """Return the largest number; NaN, which is that of a model without requests, only if there is no other."""
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def samples_as_json(result: SimulationResult) -> Mapping[str, Sequence[Mapping[str, float]]]:
    """Return the samples by model as JSON objects."""
    return {name: [sample._asdict() for sample in samples] for name, samples in result.samples.items()}
