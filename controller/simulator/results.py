"""What came of a simulation, in numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from controller.simulator.model_sim import Station
from controller.simulator.simulator import Replayed


@dataclass(frozen=True, slots=True)
class Row:
    """One pilot on one model. Waits and times are seconds, shares between 0 and 1."""

    pilot: str
    model: str
    requests: int
    unserved: int
    in_slo: float
    wait_p50_s: float
    wait_p99_s: float
    #: From arrival to end.
    total_p99_s: float
    gpu_hours: float
    cold_starts: int
    #: Looks at which workers were started or told to go.
    changes: int
    deaths: int
    #: What full batches would have needed, of what was paid.
    utilisation: float
    #: Of what the best known schedule of a clairvoyant costs; None where none is known.
    ratio: float | None = None

    def against(self, bound_hours: float | None) -> Row:
        """With the ratio to what a clairvoyant pays."""
        return replace(self, ratio=self.gpu_hours / bound_hours if bound_hours else None)

    def as_json(self) -> dict[str, Any]:
        """For a file: numbers that JSON has no word for are left out."""
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in asdict(self).items()}


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of the ordered values is not above; not a number where there are none."""
    return ordered[min(math.ceil(share * len(ordered)), len(ordered)) - 1] if ordered else math.nan


def least_hours(station: Station) -> float:
    """GPU-hours in which always full batches do all the work: no schedule is cheaper."""
    full = station.service.batch / station.service.slow[-1]
    return sum(station.work) / full / 3600


def rows(pilot: str, replayed: Replayed) -> list[Row]:
    """A row for each model."""
    return [_row(pilot, station, replayed.changes[name]) for name, station in replayed.pool.stations.items()]


def _row(pilot: str, station: Station, changes: int) -> Row:
    # A request that was never taken, or not in the time given, waited for too long.
    waits = sorted(math.inf if math.isnan(wait) else wait for wait in station.waits)
    totals = sorted(end - came for came, end in zip(station.times, station.ends, strict=True) if not math.isnan(end))
    hours = station.worker_s / 3600
    good = sum(wait <= station.service.max_wait_s for wait in waits)
    return Row(
        pilot=pilot,
        model=station.service.name,
        requests=len(waits),
        unserved=len(waits) - station.done,
        in_slo=good / len(waits) if waits else 1.0,
        wait_p50_s=quantile(waits, 0.5),
        wait_p99_s=quantile(waits, 0.99),
        total_p99_s=quantile(totals, 0.99),
        gpu_hours=hours,
        cold_starts=station.starts,
        changes=changes,
        deaths=station.deaths,
        utilisation=least_hours(station) / hours if hours else 0.0,
    )


def total(pilot: str, parts: Sequence[Row]) -> Row:
    """All models together; quantiles are those of the worst."""
    requests = sum(row.requests for row in parts)
    hours = sum(row.gpu_hours for row in parts)
    return Row(
        pilot=pilot,
        model="all",
        requests=requests,
        unserved=sum(row.unserved for row in parts),
        in_slo=sum(row.in_slo * row.requests for row in parts) / requests if requests else 1.0,
        wait_p50_s=max(row.wait_p50_s for row in parts),
        wait_p99_s=max(row.wait_p99_s for row in parts),
        total_p99_s=max(row.total_p99_s for row in parts),
        gpu_hours=hours,
        cold_starts=sum(row.cold_starts for row in parts),
        changes=sum(row.changes for row in parts),
        deaths=sum(row.deaths for row in parts),
        utilisation=sum(row.utilisation * row.gpu_hours for row in parts) / hours if hours else 0.0,
    )


def series(replayed: Replayed) -> Mapping[str, Sequence[Mapping[str, float]]]:
    """The samples by model, for a file."""
    return {name: [sample._asdict() for sample in samples] for name, samples in replayed.samples.items()}
