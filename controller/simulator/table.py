"""Table of simulation results for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.simulator.results import PolicyResult


def print_table(console: Console, title: str, results: Sequence[PolicyResult], notes: Sequence[str]) -> None:
    """Print one row per policy and model."""
    several = len({result.model for result in results}) > 1
    caption = Text("\n".join(notes)) if notes else None
    table = Table(title=Text(title), title_justify="left", caption=caption, caption_justify="left")
    table.add_column("policy", no_wrap=True)
    if several:
        table.add_column("model", no_wrap=True)
    headings = ("in SLO", "wait p50", "p99", "GPU-h", "bound", "best", "x best", "starts", "changes", "use")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        names = (result.policy, result.model) if several else (result.policy,)
        table.add_row(*map(Text, names), *_cells(result))  # names may look like markup
    console.print(table)


def _cells(result: PolicyResult) -> tuple[str, ...]:
    return (
        f"{100 * result.in_slo:.2f} %",
        _seconds(result.wait_p50_s),
        _seconds(result.wait_p99_s),
        _hours(result.gpu_hours),
        _hours(result.lower_bound_hours),
        _hours(result.best_hours),
        "" if result.ratio is None else f"{result.ratio:.2f}",
        str(result.cold_starts),
        str(result.changes),
        f"{100 * result.utilisation:.0f} %",
    )


def _hours(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if math.isfinite(value) else "none"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if math.isfinite(value) else "never"
