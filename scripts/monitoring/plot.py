"""Draws the panels of the dashboards from a Prometheus, for a look without Grafana."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import httpx
import matplotlib.pyplot as plt

from scripts.monitoring.dashboards import DASHBOARDS
from scripts.monitoring.grafana import without_variables
from scripts.monitoring.panels import Dashboard, Panel, Query

_COLUMNS = 4


def draw(url: str, started: float, ended: float, rate_range: str, folder: Path) -> None:
    """Write a PNG file for each dashboard, with the panels between two times in Unix seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        _draw_dashboard(dashboard, url, (started, ended), rate_range, folder / f"{dashboard.uid}.png")


def _draw_dashboard(dashboard: Dashboard, url: str, times: tuple[float, float], rate_range: str, file: Path) -> None:
    panels = [panel for row in dashboard.rows for panel in row.panels]
    rows = math.ceil(len(panels) / _COLUMNS)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(5 * _COLUMNS, 2.8 * rows), squeeze=False)
    figure.suptitle(dashboard.title)
    for axis, panel in zip(axes.flat, panels, strict=False):
        axis.set_title(f"{panel.title} ({panel.unit})", fontsize=9)
        for query in panel.queries:
            for series in _series(url, query, times, rate_range):
                points = [(float(at) - times[0], float(value)) for at, value in series["values"]]
                label = _legend(query, series["metric"])
                axis.plot([at for at, _ in points], [value for _, value in points], label=label, linewidth=1)
        _finish(axis, panel)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(file, dpi=70)
    plt.close(figure)


def _series(url: str, query: Query, times: tuple[float, float], rate_range: str) -> list[Any]:
    expr = without_variables(query.expr.replace("$__rate_interval", rate_range))
    params: dict[str, str | float] = {"query": expr, "start": times[0], "end": times[1], "step": 1}
    result: list[Any] = httpx.get(f"{url}/api/v1/query_range", params=params, timeout=30).json()["data"]["result"]
    return result


def _legend(query: Query, labels: dict[str, str]) -> str:
    text = query.legend
    for label, value in labels.items():
        text = text.replace(f"{{{{{label}}}}}", value)
    return text


def _finish(axis: Any, panel: Panel) -> None:
    axis.set_ylim(bottom=0, top=panel.max)
    axis.tick_params(labelsize=7)
    handles, labels = axis.get_legend_handles_labels()
    if any(labels):
        axis.legend(handles[:8], labels[:8], fontsize=6)
