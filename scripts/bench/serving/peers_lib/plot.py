"""A panel of bars per scenario."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from scripts.bench.serving.peers_lib.report import Row
from scripts.bench.serving.peers_lib.scenarios import SCENARIOS
from scripts.bench.serving.peers_lib.servers import MUSTER, YARDSTICK

_COLUMNS = 3


def draw_figure(rows: Sequence[Row], file: Path) -> None:
    """Draw requests per second by server; a panel for each scenario that has any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.scenario for row in rows if math.isfinite(row.per_s)))
    lines = max(1, math.ceil(len(names) / _COLUMNS))
    canvas, axes = pyplot.subplots(lines, _COLUMNS, figsize=(13, 3.2 * lines), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        own = [row for row in rows if row.scenario == name and math.isfinite(row.per_s)]
        colours = [{MUSTER: "tab:blue", YARDSTICK: "tab:grey"}.get(row.server, "tab:orange") for row in own]
        error = [[row.per_s - row.min_per_s for row in own], [row.max_per_s - row.per_s for row in own]]
        axis.bar([row.server for row in own], [row.per_s for row in own], yerr=error, color=colours, capsize=3)
        axis.set(title=SCENARIOS[name].question, ylabel="requests/s")
        axis.tick_params(axis="x", rotation=25, labelsize=8)
        axis.grid(alpha=0.3, axis="y")
    canvas.tight_layout()
    canvas.savefig(file, dpi=110)
