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


def draw_figure(report: dict[str, Any], file: Path) -> None:
    """Draw tokens per CPU second by batch size and for the trace, and the times to the first and between tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, (left, middle, right) = pyplot.subplots(1, 3, figsize=(16, 5))
    summary = report["summary"]
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
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    where = report["machine"]
    canvas.suptitle(f"SmolLM2-135M, one thread of {where['cpu_cores']} {where['processor']} cores")
    canvas.tight_layout()
    canvas.savefig(file, dpi=110)
