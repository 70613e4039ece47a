"""Plots of the engine benchmark: step times, throughput and latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_COLOURS = {"step batching": "tab:blue", "one at a time": "tab:grey", "whole batches": "tab:orange"}


def draw_figures(result: Mapping[str, Any], file: Path, ours: str) -> None:
    """Draw four panels; panels without data stay empty."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(2, 2, figsize=(12, 8.5))
    _steps(axes[0][0], result)
    _throughput(axes[0][1], result)
    _latency(axes[1][0], result)
    _distribution(axes[1][1], result, ours)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    canvas.suptitle(result["where"])
    canvas.tight_layout()
    canvas.savefig(file, dpi=110)


def _steps(axis: Any, result: Mapping[str, Any]) -> None:
    points = result["points"]
    batches = [point["batch"] for point in points]
    axis.plot(batches, [1000 * point["forward_s"] for point in points], "k--", marker=".", label="forward pass alone")
    axis.plot(batches, [1000 * point["step_s"] for point in points], marker="o", label="engine's step")
    axis.set(title="A step", xlabel="requests in the batch", ylabel="ms", ylim=(0, None))


def _throughput(axis: Any, result: Mapping[str, Any]) -> None:
    points, steps = result["points"], result["mean_steps"]
    batches = [point["batch"] for point in points]
    if "limit" in result:
        max_rate = result["limit"]["images_per_s"]
        axis.axhline(max_rate, color="k", linewidth=0.8)
        axis.text(batches[-1], max_rate, f"limit {max_rate:.3g}", ha="right", va="bottom", fontsize=8)
    for key, style, label in (("forward_s", "k--", "forward pass alone"), ("step_s", "C0o-", "engine's steps")):
        axis.plot(batches, [point["batch"] / point[key] / steps for point in points], style, markersize=4, label=label)
    for calls in result.get("pipeline_calls", []):
        pairs = [(int(batch), int(batch) / seconds) for batch, seconds in calls["seconds"].items()]
        axis.plot(*zip(*pairs, strict=True), "C1s-", markersize=4, label=f"pipe() with everything, {calls['way']}")
    for server, row in _best(result["rows"]).items():
        axis.axhline(row["images_per_s"]["median"], color=_COLOURS[server], linestyle=":", label=f"served: {server}")
    axis.set(title="Throughput", xlabel="requests in the batch", ylabel="images/s", ylim=(0, None))


def _best(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the row of each server's highest closed-loop throughput."""
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        known = best.get(row["server"])
        if row.get("users") and (known is None or row["images_per_s"]["median"] > known["images_per_s"]["median"]):
            best[row["server"]] = row
    return best


def _latency(axis: Any, result: Mapping[str, Any]) -> None:
    """Plot p50 and p99 by server and load; closed and open loops are separate."""
    loads = list(dict.fromkeys(row["load"] for row in result["rows"]))
    for server, colour in _COLOURS.items():
        own = [row for row in result["rows"] if row["server"] == server and row.get("p50_ms")]
        for key, style in (("p50_ms", "-o"), ("p99_ms", "--^")):
            for label, part in (
                (f"{server}, {key[:3]}", [row for row in own if row["users"]]),
                (None, [row for row in own if not row["users"]]),
            ):
                middle = [row[key]["median"] for row in part]
                below = [row[key]["median"] - row[key]["min"] for row in part]
                above = [row[key]["max"] - row[key]["median"] for row in part]
                places = [loads.index(row["load"]) for row in part]
                options: dict[str, Any] = {"color": colour, "capsize": 2, "markersize": 4, "label": label}
                axis.errorbar(places, middle, yerr=[below, above], fmt=style, **options)
    axis.set_xticks(range(len(loads)), loads, rotation=20)
    axis.set(title="Latency: median and spread over rounds", ylabel="ms", yscale="log")


def _distribution(axis: Any, result: Mapping[str, Any], ours: str) -> None:
    """Plot all latencies at the middle open-loop load."""
    loads = list(dict.fromkeys(row["load"] for row in result["rows"] if row["server"] == ours and row.get("rate")))
    if not loads:
        return
    load = loads[len(loads) // 2]
    for row in result["rows"]:
        if row["load"] == load and row.get("p50_ms"):
            axis.plot(row["latency_ms_percentiles"], range(101), color=_COLOURS[row["server"]], label=row["server"])
    axis.set(title=f"Latencies at {load}", xlabel="ms", ylabel="% of requests", xlim=(0, None))
