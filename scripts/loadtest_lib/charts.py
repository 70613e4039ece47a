"""The charts of a load test's report, each as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

BLUE, ORANGE, RED, GREEN, GREY, VIOLET = "#2563eb", "#d97706", "#dc2626", "#059669", "#6b7280", "#7c3aed"
_STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
    "xtick.color": "#6b7280",
    "ytick.color": "#6b7280",
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "muster",
}
_SIZE = (5.6, 2.5)
_QUANTILES = {"p50_ms": (GREEN, "p50"), "p95_ms": (BLUE, "p95"), "p99_ms": (VIOLET, "p99")}
Series = Mapping[str, Sequence[float | int | None]]


def draw_charts(data: Mapping[str, Any]) -> dict[str, str]:
    """Return SVG by title. Charts of what was not recorded are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series: Series = data["series"]
    charts: dict[str, str] = {}
    if not series:
        return charts
    with matplotlib.rc_context(_STYLE):
        for title, draw in _CHARTS.items():
            figure, axis = pyplot.subplots(figsize=_SIZE)
            if draw(axis, series, data):
                axis.set_xlabel("seconds")
                axis.set_xlim(0, max(each or 0 for each in series["at_s"]))
                axis.grid(axis="y")
                axis.set_axisbelow(True)
                if axis.get_legend_handles_labels()[0]:
                    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=4, borderaxespad=0)
                charts[title] = _svg(figure)
            pyplot.close(figure)
    return charts


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _lines(axis: Any, series: Series, columns: Mapping[str, tuple[str, str]], factor: float = 1.0) -> bool:
    """Draw the columns that have values. Returns false if none has."""
    drawn = False
    for name, (colour, label) in columns.items():
        values = [None if each is None else each * factor for each in series[name]]
        if any(each is not None for each in values):
            axis.plot(series["at_s"], values, color=colour, label=label)
            drawn = True
    axis.set_ylim(bottom=0)
    return drawn


def _users(axis: Any, series: Series, _: Mapping[str, Any]) -> bool:
    axis.set_ylabel("count")
    return _lines(axis, series, {"users": (BLUE, "users"), "in_flight": (ORANGE, "requests in flight")})


def _rate(axis: Any, series: Series, _: Mapping[str, Any]) -> bool:
    axis.set_ylabel("requests/s")
    columns = [series[name] for name in ("ok_per_s", "refused_per_s", "errors_per_s")]
    colours = [GREEN, ORANGE, RED]
    axis.stackplot(series["at_s"], *columns, colors=colours, labels=["answered", "429", "errors"], alpha=0.75)
    return True


def _latency(axis: Any, series: Series, _: Mapping[str, Any]) -> bool:
    axis.set_ylabel("seconds")
    return _lines(axis, series, _QUANTILES, 1e-3)


def _workers(axis: Any, series: Series, data: Mapping[str, Any]) -> bool:
    axis.set_ylabel("workers")
    drawn = _lines(axis, series, {"workers": (BLUE, "ready")})
    changes = [each for each in data["decisions"] if each["desired"] != each["provisioned"]]
    for number, each in enumerate(changes):
        colour = GREEN if each["desired"] > each["provisioned"] else ORANGE
        axis.axvline(each["at_s"], color=colour, linewidth=0.8, alpha=0.7, label="" if number else "decisions")
    return drawn


def _queue(axis: Any, series: Series, _: Mapping[str, Any]) -> bool:
    axis.set_ylabel("tasks")
    return _lines(axis, series, {"queued": (ORANGE, "waiting"), "running": (BLUE, "running")})


def _own_share(axis: Any, series: Series, _: Mapping[str, Any]) -> bool:
    axis.set_ylabel("ms")
    return _lines(axis, series, {f"own_share_{name}": style for name, style in _QUANTILES.items()})


def _memory(axis: Any, series: Series, _: Mapping[str, Any]) -> bool:
    axis.set_ylabel("MiB")
    return _lines(axis, series, {"rss": (GREY, "resident")}, 2**-20)


_CHARTS = {
    "Users": _users,
    "Rate": _rate,
    "Latency of answered requests": _latency,
    "Workers and scaling decisions": _workers,
    "Queue": _queue,
    "The balancer's own share of the latency": _own_share,
    "The balancer's memory": _memory,
}
