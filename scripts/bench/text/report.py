"""Tables and figures of the text benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

_FIGURES = (
    "tokens_per_s",
    "tokens_per_cpu_s",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "itl_ms_p50",
    "itl_ms_p99",
    "latency_ms_p50",
)
#: An engine of Muster, by the library in it.
_PAIRS = {"vllm": "muster + vllm", "openvino": "muster + openvino"}


def summarize(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the median over rounds of each contender and load, with its ratio to `muster` and to the library alone."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        if "load" in result:
            rows.setdefault((result["load"], result["contender"]), []).append(result)
    summary = []
    for (load, contender), measured in rows.items():
        row: dict[str, Any] = {"load": load, "contender": contender}
        row |= {name: statistics.median(each[name] for each in measured) for name in _FIGURES}
        alone = next((name for name, pair in _PAIRS.items() if pair == contender), "")
        for name in ("tokens_per_s", "tokens_per_cpu_s"):
            row[f"{name}_of_muster"] = _ratio(rows.get((load, "muster")), measured, name)
            row[f"{name}_of_alone"] = _ratio(rows.get((load, alone)), measured, name)
        summary.append(row)
    return summary


def _ratio(base: Sequence[dict[str, Any]] | None, measured: Sequence[dict[str, Any]], name: str) -> float | None:
    if not base:
        return None
    return float(statistics.median(each[name] for each in measured) / statistics.median(each[name] for each in base))


def table(summary: Sequence[dict[str, Any]]) -> Table:
    found = Table(
        "load", "", "tokens/s", "of muster", "of alone", "per CPU s", "of muster", "of alone", "TTFT ms", "ITL ms"
    )
    for row in summary:
        cells = [row["load"], row["contender"]]
        for name in ("tokens_per_s", "tokens_per_cpu_s"):
            cells += [f"{row[name]:.1f}", _factor(row[f"{name}_of_muster"]), _factor(row[f"{name}_of_alone"])]
        cells += [f"{row[f'{name}_p50']:.0f} / {row[f'{name}_p99']:.0f}" for name in ("ttft_ms", "itl_ms")]
        found.add_row(*cells)
    return found


def _factor(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def admissions(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures by batch size and steps between two admissions; None for "when no text is left"."""
    names = ("places", "interval", "steps", *_FIGURES)
    return [{name: each[name] for name in names} for each in results if "places" in each]


def every(interval: int | None) -> str:
    """Return when texts are admitted, in words."""
    return "when empty" if interval is None else "at each step" if interval == 1 else f"every {interval} steps"


def admission_table(rows: Sequence[dict[str, Any]]) -> Table:
    found = Table("places", "admission", "tokens/s", "per CPU s", "TTFT ms p50 / p99", "ITL ms p50 / p99")
    for row in rows:
        times = [f"{row[f'{name}_p50']:.0f} / {row[f'{name}_p99']:.0f}" for name in ("ttft_ms", "itl_ms")]
        rates = [f"{row[name]:.1f}" for name in ("tokens_per_s", "tokens_per_cpu_s")]
        found.add_row(str(row["places"]), every(row["interval"]), *rates, *times)
    return found


def draw_figure(report: dict[str, Any], file: Path) -> None:
    """Draw how the contenders compare; below that, what batch size and steps between admissions change."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    is_swept = bool(report.get("admissions"))
    canvas, axes = pyplot.subplots(1 + is_swept, 3, figsize=(16, 5 + 5 * is_swept), squeeze=False)
    _draw_contenders(axes[0], report["summary"])
    if is_swept:
        _draw_admissions(axes[1], report["admissions"])
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    where = report["machine"]
    canvas.suptitle(f"SmolLM2-135M, one thread of {where['cpu_cores']} {where['processor']} cores")
    canvas.tight_layout()
    canvas.savefig(file, dpi=110)


def _draw_admissions(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draw a line for each batch size over the steps between two admissions."""
    intervals = list(dict.fromkeys(row["interval"] for row in rows))
    for number, places in enumerate(dict.fromkeys(row["places"] for row in rows)):
        own = [row for row in rows if row["places"] == places]
        at = [intervals.index(row["interval"]) for row in own]
        for axis, name in zip(axes, ("tokens_per_cpu_s", "ttft_ms_p50", "itl_ms_p50"), strict=True):
            values = [row[name] for row in own]
            axis.plot(at, values, "o-", color=f"C{number}", label=f"{places} places")
            if name.endswith("_p50"):
                axis.plot(at, [row[name.replace("_p50", "_p99")] for row in own], "o:", color=f"C{number}", alpha=0.6)
    titles = ("Generated tokens", "Time to the first token, p50; p99 dotted", "Between tokens, p50; p99 dotted")
    for axis, title, unit in zip(axes, titles, ("tokens per CPU second", "ms", "ms"), strict=True):
        axis.set(title=title, xlabel="steps between two admissions", ylabel=unit)
        axis.set_xticks(range(len(intervals)), ["until empty" if each is None else str(each) for each in intervals])
    axes[0].set_ylim(bottom=0)
    for axis in axes[1:]:
        axis.set_yscale("log")
    axes[0].legend(fontsize=8)


def _draw_contenders(axes: Any, summary: Sequence[dict[str, Any]]) -> None:
    """Draw tokens per CPU second by batch size and for the trace, and the times to the first and between tokens."""
    left, middle, right = axes
    for number, contender in enumerate(dict.fromkeys(row["contender"] for row in summary)):
        own = [row for row in summary if row["contender"] == contender]
        sweep = [row for row in own if row["load"].startswith("batch ")]
        style = "--" if contender in _PAIRS.values() else "-"
        sizes = [int(row["load"].split()[1]) for row in sweep]
        rates = [row["tokens_per_cpu_s"] for row in sweep]
        left.plot(sizes, rates, style, marker="o", color=f"C{number}", label=contender)
        for row in own:
            if row["load"] in ("closed", "open"):
                hatch = "" if row["load"] == "closed" else "//"
                at = number + (0.4 if row["load"] == "open" else 0)
                middle.bar(at, row["tokens_per_cpu_s"], 0.4, color=f"C{number}", hatch=hatch)
                right.bar(at, row["ttft_ms_p50"], 0.4, color=f"C{number}", hatch=hatch)
                right.bar(at, row["itl_ms_p99"], 0.2, color="black", alpha=0.5)
    names = list(dict.fromkeys(row["contender"] for row in summary))
    for axis in (middle, right):
        axis.set_xticks([number + 0.2 for number in range(len(names))], names, rotation=45, ha="right")
    left.set(
        title="Equal work for each place of a batch",
        xlabel="texts in the batch",
        ylabel="tokens per CPU second",
        xscale="log",
    )
    middle.set(title="Lengths of the trace: closed, open (hatched)", ylabel="tokens per CPU second")
    right.set(title="Time to the first token, p50; between tokens, p99 (black)", ylabel="ms", yscale="log")
