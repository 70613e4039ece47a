"""Table of simulation results for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.simulator.results import PolicyResult

_MANY_HOURS = 10.0


def print_table(console: Console, title: str, results: Sequence[PolicyResult], notes: Sequence[str]) -> None:
    """Print one row per policy and model."""
    several = len({result.model for result in results}) > 1
    caption = Text("\n".join(notes)) if notes else None
    table = Table(caption=caption, caption_justify="left")
    table.add_column("policy", no_wrap=True)
    if several:
        table.add_column("model", no_wrap=True)
    columns = {name: [cells[name] for cells in map(_cells, results)] for name in _cells(results[0])} if results else {}
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, result in enumerate(results):
        names = (result.policy, result.model) if several else (result.policy,)
        table.add_row(*map(Text, names), *(cells[number] for cells in shown.values()))  # names may look like markup
    console.print(Text(title))  # as a title of the table, it would be as narrow
    console.print(table)


def _cells(result: PolicyResult) -> dict[str, str]:
    """Return the cells by heading; a column of empty cells is left out."""
    return {
        "in SLO": f"{100 * result.in_slo:.2f} %",
        "wait p50": _seconds(result.wait_p50_s),
        "p99": _seconds(result.wait_p99_s),
        "GPU-h": _hours(result.gpu_hours),
        "bound": _hours(result.lower_bound_hours),
        "best": _hours(result.best_hours),
        "x best": "" if result.ratio is None else f"{result.ratio:.2f}",
        "starts": str(result.cold_starts),
        "changes": str(result.changes),
        "expired": str(result.expired or ""),
        "use": f"{100 * result.utilisation:.0f} %",
    }


def hours_text(hours: float) -> str:
    """Return GPU-hours with a decimal place, and with more of them for less than ten hours."""
    if hours >= _MANY_HOURS or hours == 0:
        return f"{hours:.1f}"
    return f"{hours:.2f}" if hours >= 1 else f"{hours:#.2g}"


def _hours(value: float | None) -> str:
    if value is None:
        return ""
    return hours_text(value) if math.isfinite(value) else "none"


def _seconds(value: float) -> str:
    if math.isnan(value):  # no request
        return "-"
    return f"{value:.1f} s" if math.isfinite(value) else "never"
