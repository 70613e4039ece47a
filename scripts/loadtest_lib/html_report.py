"""The report of a load test as one HTML file, which loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from scripts.loadtest_lib.charts import draw_charts

_TEMPLATE = "report.html.j2"
_MAX_CHANGES = 60
#: Of the balancer's own share of the latency, in milliseconds.
OWN_SHARE_BOUND_MS = 50.0


def render_report(data: Mapping[str, Any]) -> str:
    """Return the page. Texts of the server are escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["duration"] = duration
    changes = [each for each in data["decisions"] if each["desired"] != each["provisioned"]][:_MAX_CHANGES]
    template = environment.get_template(_TEMPLATE)
    return template.render(data=data, charts=draw_charts(data), tiles=_tiles(data), changes=changes)


def duration(milliseconds: float | None) -> str:
    """Return a duration for people: `4.2 ms` or `12.3 s`; `-` for none."""
    if milliseconds is None:
        return "-"
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.1f} ms"


def _tiles(data: Mapping[str, Any]) -> list[dict[str, str]]:
    totals, kinds = data["totals"], data["kinds"]
    tiles = [
        _tile(f"{totals['ok']:,}", "requests answered"),
        _tile(f"{totals['errors']:,}", "errors", is_bad=totals["errors"] > 0, is_good=totals["errors"] == 0),
        _tile(f"{totals['refused']:,}", "refused with 429"),
    ]
    if not kinds:
        return tiles
    tiles += [
        _tile(f"{totals['max_users']:,}", "users at most")
        if not data["options"]["open_loop"]
        else _tile(f"{totals['max_in_flight']:,}", "requests in flight at most"),
        _tile(f"{totals['ok_per_s']:.1f}/s", "answered"),
        _tile(duration(kinds[-1]["p95_ms"]), "p95 of all requests"),
    ]
    share = totals["own_share_p99_ms"]
    if share is not None:
        is_bad = share > OWN_SHARE_BOUND_MS
        tiles.append(_tile(duration(share), "p99 of the balancer's own share", is_bad=is_bad, is_good=not is_bad))
    memory = data["memory"]
    if memory is not None:
        tiles.append(_tile(f"{memory['last_mib']} MiB", f"balancer's memory; at first {memory['first_mib']}"))
    return tiles


def _tile(value: str, label: str, *, is_bad: bool = False, is_good: bool = False) -> dict[str, str]:
    return {"value": value, "label": label, "state": "bad" if is_bad else "good" if is_good else ""}
