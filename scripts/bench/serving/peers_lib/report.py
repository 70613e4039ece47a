"""One table of all servers and scenarios: medians over rounds, and ratios within each round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from scripts.bench.serving.peers_lib.deployment import Measurement, Result
from scripts.bench.serving.peers_lib.scenarios import SCENARIOS, yardstick_of
from scripts.bench.serving.peers_lib.servers import MUSTER, YARDSTICK


@dataclass(frozen=True)
class Row:
    """All rounds of one server in one scenario. Numbers are medians; NaN where there are none."""

    scenario: str
    server: str
    rounds: int
    per_s: float
    min_per_s: float
    max_per_s: float
    #: This server's requests per second, as a share of the bare ASGI app's or of the ideal, in the same round.
    of_yardstick: float
    #: Muster's requests per second divided by this server's, in the same round.
    muster_ratio: float
    p50_ms: float
    p99_ms: float
    refused: int
    errors: int
    client: str
    details: Mapping[str, float]
    #: Why the server did not run.
    reason: str = ""


def median(values: Iterable[float]) -> float:
    """Return the median of the finite values; NaN if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else float("nan")


def rows(results: Sequence[Result]) -> list[Row]:
    """Return a row per scenario and server, in the order of their first results."""
    by_place: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        by_place.setdefault((result.scenario, result.server), []).append(result)
    rates = {
        (result.scenario, result.server, result.round): result.measurement.per_s
        for result in results
        if result.measurement
    }
    return [_row(scenario, server, found, rates) for (scenario, server), found in by_place.items()]


def _row(scenario: str, server: str, results: Sequence[Result], rates: Mapping[tuple[str, str, int], float]) -> Row:
    done = [(result.round, result.measurement) for result in results if result.measurement]
    per_s = [measurement.per_s for _, measurement in done]

    def ratio(top: Callable[[int], float], bottom: Callable[[int], float]) -> float:
        return median(top(number) / bottom(number) for number, _ in done if bottom(number))

    def rate(name: str) -> Callable[[int], float]:
        return lambda number: rates.get((scenario, name, number), float("nan"))

    def yardstick(number: int) -> float:
        return yardstick_of(SCENARIOS[scenario], rate(YARDSTICK)(number))

    names = dict.fromkeys(name for _, measurement in done for name in measurement.details)
    return Row(
        scenario,
        server,
        rounds=len(done),
        per_s=median(per_s),
        min_per_s=min(per_s, default=float("nan")),
        max_per_s=max(per_s, default=float("nan")),
        of_yardstick=ratio(rate(server), yardstick),
        muster_ratio=ratio(rate(MUSTER), rate(server)),
        p50_ms=median(measurement.p50_ms for _, measurement in done),
        p99_ms=median(measurement.p99_ms for _, measurement in done),
        refused=sum(measurement.refused for _, measurement in done),
        errors=sum(measurement.errors for _, measurement in done),
        client=done[0][1].client if done else "",
        details={
            name: median(measurement.details.get(name, float("nan")) for _, measurement in done) for name in names
        },
        reason="; ".join(dict.fromkeys(result.reason for result in results if result.reason)),
    )


def table(found: Sequence[Row]) -> Table:
    """Return the table for the terminal."""
    made = Table(title="medians over rounds; ratios within rounds")
    for column in ("scenario", "server"):
        made.add_column(column)
    for column in ("req/s", "of bare/ideal", "Muster/this", "p50 ms", "p99 ms", "refused", "errors"):
        made.add_column(column, justify="right")
    made.add_column("details")
    last = ""
    for row in found:
        made.add_row(SCENARIOS[row.scenario].question if row.scenario != last else "", row.server, *_cells(row))
        last = row.scenario
    return made


def _cells(row: Row) -> list[str]:
    if not row.rounds:
        return ["", "", "", "", "", "", "", f"not run: {row.reason}"]
    spread = f" ({number(row.min_per_s)} to {number(row.max_per_s)})" if row.rounds > 1 else ""
    details = [f"{name.replace('_', ' ')} {number(value)}" for name, value in row.details.items()]
    details += [f"client in {row.client}"] if row.client != "wrk" else []
    details += [f"failed: {row.reason}"] if row.reason else []
    return [
        number(row.per_s) + spread if math.isfinite(row.per_s) else "",
        number(row.of_yardstick, 3),
        number(row.muster_ratio),
        number(row.p50_ms),
        number(row.p99_ms),
        str(row.refused),
        str(row.errors),
        ", ".join(details),
    ]


def number(value: float, digits: int = 2) -> str:
    """Return the value with fewer digits the larger it is; nothing for NaN."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "never"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}f}"


def plain(value: Any) -> Any:
    """Return what JSON can hold: rounded numbers, and null in place of NaN and infinity."""
    if isinstance(value, Row | Measurement | Result):
        return plain(asdict(value))
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value
