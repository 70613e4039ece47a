"""Tables and summaries of the engine benchmark: ratios within rounds, medians and spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from scripts.bench.serving.forward_pass import StepTiming
from scripts.bench.serving.load_generator import LoadResult
from scripts.bench.serving.overheads import LoopTiming, SamplerCost
from scripts.bench.serving.workloads import quantile

OURS = "step batching"
_KEYS = ("images_per_s", "p50_ms", "p99_ms")

#: Results by load and server, one per round; empty for servers that could not keep up.
Rounds = dict[str, dict[str, list[LoadResult]]]
Row = dict[str, Any]


def condense(rounds: Rounds) -> list[Row]:
    """Return a row per load and server: median, spread, and step batching's ratio within each round."""
    return [
        _row(load, server, results, by_server.get(OURS, []))
        for load, by_server in rounds.items()
        for server, results in by_server.items()
    ]


def _row(load: str, server: str, results: Sequence[LoadResult], ours: Sequence[LoadResult]) -> Row:
    row: Row = {"load": load, "server": server, "overloaded": not results}
    if not results:
        return row
    each = [one.summary() for one in results]
    row |= {
        "users": results[0].load.users,
        "rate": results[0].load.rate,
        "requests": sum(one["requests"] for one in each),
    }
    for key in (*_KEYS, "row_steps_per_s", "busy", "mean_batch"):
        row[key] = spread([one[key] for one in each])
    for key in _KEYS:
        pairs = zip((own.summary()[key] for own in ours), (one[key] for one in each), strict=False)
        row[f"ratio_{key}"] = spread([own / one for own, one in pairs if one])
    row["latency_ms_percentiles"] = percentiles(results)
    row["unanswered"] = sum(one.unanswered for one in results)
    row["errors"] = sum(one.errors for one in results)
    return row


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return median, minimum and maximum; None without data. Rounds without requests are ignored."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentiles(results: Sequence[LoadResult]) -> list[float]:
    """Return latencies in milliseconds at 0, 1, ... 100 %, over all rounds."""
    latencies = [1000 * latency for one in results for latency in one.latencies]
    return latencies and [quantile(latencies, share / 100) for share in range(101)]


def limit(points: Sequence[StepTiming]) -> tuple[StepTiming, float]:
    """Return the batch with the highest denoiser throughput, and its row steps per second."""
    best = max(points, key=lambda point: point.batch / point.forward_s)
    return best, best.batch / best.forward_s


def of_limit(rows: Sequence[Row], max_rate: float) -> dict[str, float]:
    """Return each server's best steps per second as a share of the limit."""
    shares: dict[str, float] = {}
    for row in rows:
        if not row["overloaded"] and row["users"]:
            share = row["row_steps_per_s"]["median"] / max_rate
            shares[row["server"]] = max(shares.get(row["server"], 0.0), share)
    return shares


# ---- tables


def tables(result: Mapping[str, Any], points: Sequence[StepTiming], rows: Sequence[Row]) -> Iterator[Table]:
    """Return the tables for the terminal."""
    where = result.get("where", "")
    if points:
        yield _steps(f"a step of the engine around the denoiser's forward pass; {where}", points, result)
    if result["samplers"]:
        yield _samplers(result["samplers"])
    if rows:
        yield _loads(f"{where}; median (min to max) over rounds; ratio = step batching / this, same round", rows)


def _steps(title: str, points: Sequence[StepTiming], result: Mapping[str, Any]) -> Table:
    table = Table(title=title)
    steps, by_batch = result["mean_steps"], result["pipeline_calls"]
    for column in ("batch", "passes", "forward ms", "step ms", "overhead", "limit images/s", "steps images/s"):
        table.add_column(column, justify="right")
    for calls in by_batch:
        table.add_column(f"pipe() images/s\n{calls['way']}", justify="right")
    for point in points:
        cells = [f"{point.batch}", f"{point.passes}", f"{1000 * point.forward_s:.2f}", f"{1000 * point.step_s:.2f}"]
        cells += [f"{point.overhead:+.1%}"]
        cells += [f"{point.batch / seconds / steps:.2f}" for seconds in (point.forward_s, point.step_s)]
        for calls in by_batch:
            took = calls["seconds"].get(str(point.batch))
            cells.append(f"{point.batch / took:.2f}" if took else "")
        table.add_row(*cells)
    return table


def _samplers(costs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="samplers alone, microseconds for all rows to move on by one step")
    sizes = sorted({cost["rows"] for cost in costs})
    for column in ("sampler", "path", *(f"rows: {rows}" for rows in sizes)):
        table.add_column(column, justify="left" if column in ("sampler", "path") else "right")
    by_path: dict[tuple[str, str], dict[int, float]] = {}
    for cost in costs:
        by_path.setdefault((cost["sampler"], cost["path"]), {})[cost["rows"]] = cost["us"]
    for names, by_rows in by_path.items():
        table.add_row(*names, *(f"{by_rows[rows]:.0f}" for rows in sizes))
    return table


def _loads(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title)
    names = ("load", "server", "images/s", "p50 ms", "p99 ms", "batch", "images/s ratio", "p50 ratio", "p99 ratio")
    for column in names:
        table.add_column(column, justify="left" if column in ("load", "server") else "right")
    for row in rows:
        if row["overloaded"]:
            table.add_row(row["load"], row["server"], "cannot keep up, not run")
            continue
        cells = [row["load"], row["server"]]
        for key in _KEYS:
            cell, digits = row[key], 2 if key == "images_per_s" else 0
            cells.append(
                f"{cell['median']:.{digits}f} ({cell['min']:.{digits}f} to {cell['max']:.{digits}f})" if cell else ""
            )
        cells.append(f"{row['mean_batch']['median']:.1f}")
        ratios = [row[f"ratio_{key}"] for key in _KEYS]
        cells += [f"{one['median']:.2f}" if one else "" for one in ratios]
        table.add_row(*cells)
    return table


def plain(value: Any) -> Any:
    """Round the numbers of a result."""
    if isinstance(value, StepTiming | LoopTiming | SamplerCost):
        return plain(asdict(value))
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value
