#!/usr/bin/env python3
"""Write the dashboards of Grafana, or check them.

    python -m scripts.monitoring.grafana [--check]

Checked is that the files are what the code gives, and that every expression names metrics and labels that the server
exports. The tests let `promtool` parse the expressions, where it is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scripts.monitoring.catalog import families, series
from scripts.monitoring.dashboards import DASHBOARDS
from scripts.monitoring.expressions import problems
from scripts.monitoring.panels import dashboard_json

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "deploy" / "monitoring" / "grafana" / "dashboards"


class PanelQuery(NamedTuple):
    """An expression with its place."""

    place: str
    expr: str
    legend: str


def files() -> dict[str, str]:
    """Return the text of each dashboard by the name of its file."""
    return {f"{dashboard.uid}.json": json.dumps(dashboard_json(dashboard), indent=1) + "\n" for dashboard in DASHBOARDS}


def queries() -> Iterator[PanelQuery]:
    """Yield the expressions of all panels, and those of the variables as selectors."""
    for dashboard in DASHBOARDS:
        for variable in dashboard.variables:
            selector = f"{{{variable.selector}}}" if variable.selector else ""
            place = f"{dashboard.uid}: variable {variable.name}"
            yield PanelQuery(place, f"{variable.metric}{selector}", f"{{{{{variable.label}}}}}")
        for row in dashboard.rows:
            for panel in row.panels:
                for query in panel.queries:
                    yield PanelQuery(f"{dashboard.uid}: {panel.title}", query.expr, query.legend)


def without_variables(expr: str) -> str:
    """Return the expression as Prometheus takes it, with everything selected."""
    for variable in ("model", "worker", "owner"):
        expr = expr.replace(f'"${variable}"', '".*"')
    return expr.replace("$__rate_interval", "1m")


def stale_files() -> Iterator[str]:
    """Yield what is wrong with the files."""
    expected = files()
    for name, text in expected.items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            yield f"{name} is not what the code gives: run python -m scripts.monitoring.grafana"
    for path in FOLDER.glob("*.json"):
        if path.name not in expected:
            yield f"{path.name} belongs to no dashboard"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write or check the dashboards of Grafana.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not current")
    check = parser.parse_args(argv).check
    known, every = series(families().values()), list(queries())
    wrong = [f"{each.place}: {text}" for each in every for text in problems(each.expr, each.legend, known)]
    if not check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name, text in files().items():
            (FOLDER / name).write_text(text)
    wrong += stale_files()
    print("\n".join(wrong) if wrong else f"dashboards: {len(DASHBOARDS)}, {len(every)} expressions")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
