"""The results of a simulation as a table for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from controller.simulator.results import Row


def show(console: Console, title: str, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Print it, one line per pilot and model."""
    several = len({row.model for row in rows}) > 1
    table = Table(title=title, title_justify="left", caption="\n".join(notes) or None, caption_justify="left")
    table.add_column("policy", no_wrap=True)
    if several:
        table.add_column("model", no_wrap=True)
    headings = ("in SLO", "wait p50", "p99", "GPU-h", "x best", "starts", "changes", "use")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        names = (row.pilot, row.model) if several else (row.pilot,)
        table.add_row(*names, *_cells(row))
    console.print(table)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{100 * row.in_slo:.2f} %",
        _seconds(row.wait_p50_s),
        _seconds(row.wait_p99_s),
        f"{row.gpu_hours:.1f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        str(row.cold_starts),
        str(row.changes),
        f"{100 * row.utilisation:.0f} %",
    )


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if math.isfinite(value) else "for ever"
