"""Builds dashboards and panels of Grafana as JSON, without a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["timeseries", "stat", "bargauge", "heatmap", "table"]
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
#: Width of the grid.
_COLUMNS = 24
_TAG = "muster"
#: The schema of Grafana 10 and later.
_SCHEMA_VERSION = 39


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and what its series are called: text with `{{label}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `unit` is a name of Grafana, such as `s` or `percentunit`."""

    title: str
    queries: Sequence[Query]
    description: str
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    #: (colour, value from which it holds); the first value is ignored.
    thresholds: Sequence[tuple[str, float]] = ()
    max: float | None = None


def number(
    title: str,
    expr: str,
    description: str,
    unit: str = "short",
    *,
    thresholds: Sequence[tuple[str, float]] = (),
    max: float | None = None,  # noqa: A002 - as Grafana calls it
) -> Panel:
    """Return a small panel with the last value of the expression."""
    return Panel(title, [Query(expr)], description, unit, "stat", 4, 5, thresholds=thresholds, max=max)


@dataclass(frozen=True, slots=True)
class Row:
    """A heading with the panels below it."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable whose values are those of a label."""

    name: str
    metric: str
    label: str
    #: Other variables that restrict it.
    selector: str = ""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A dashboard. Its file has the name of its uid."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()


def dashboard_json(dashboard: Dashboard) -> Json:
    """Return the model of a dashboard, as Grafana imports it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [_TAG],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "Muster",
                "tags": [_TAG],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables)]},
        "panels": _layout(dashboard.rows),
    }


def _datasource() -> Json:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}


def _variable(variable: Variable) -> Json:
    selector = f"{{{variable.selector}}}" if variable.selector else ""
    query = f"label_values({variable.metric}{selector}, {variable.label})"
    return {
        "name": variable.name,
        "label": variable.name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": variable.name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _layout(rows: Sequence[Row]) -> list[Json]:
    """Place the panels from left to right, below the headings of their rows."""
    placed: list[Json] = []
    y = 0
    for row in rows:
        placed.append(
            {
                "id": len(placed) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
            }
        )
        y, x, height = y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                y, x, height = y + height, 0, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            placed.append({"id": len(placed) + 1, "gridPos": place, **_panel(panel)})
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [_target(panel, query, chr(ord("A") + at)) for at, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
    }


def _target(panel: Panel, query: Query, ref: str) -> Json:
    target: Json = {"refId": ref, "datasource": DATASOURCE, "expr": query.expr, "legendFormat": query.legend}
    if panel.kind in ("table", "bargauge"):
        target |= {"instant": True, "range": False}
    if panel.kind == "table":
        target["format"] = "table"
    if panel.kind == "heatmap":
        target["format"] = "heatmap"
    return target


def _field(panel: Panel) -> Json:
    field: Json = {"unit": panel.unit, "min": 0}
    if panel.max is not None:
        field["max"] = panel.max
    if panel.thresholds:
        steps = [{"color": color, "value": value if at else None} for at, (color, value) in enumerate(panel.thresholds)]
        field |= {"thresholds": {"mode": "absolute", "steps": steps}, "color": {"mode": "thresholds"}}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        fill = 30 if panel.stacked else 8
        field["custom"] = {"drawStyle": "line", "fillOpacity": fill, "showPoints": "never", "stacking": stacking}
        field["color"] = {"mode": "palette-classic"}
    return field


def _options(panel: Panel) -> Json:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "heatmap":
        return {"calculate": False, "cellGap": 1, "yAxis": {"unit": panel.unit}, "tooltip": {"mode": "single"}}
    if panel.kind == "table":
        return {"showHeader": True}
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "bargauge":
        return {"reduceOptions": reduce, "orientation": "horizontal", "displayMode": "basic"}
    return {"reduceOptions": reduce, "colorMode": "background", "graphMode": "area", "textMode": "auto"}
