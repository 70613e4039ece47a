#!/usr/bin/env python3
"""Write the tables of `docs/metrics.md` from the collectors, or check them.

    python -m scripts.monitoring.page [--check]

What stands outside of the marked part of the page is written by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from scripts.monitoring.catalog import Family, families

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "metrics.md"
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
#: Headings, and how the names below them begin. The first that fits counts.
_SECTIONS = (
    ("Requests", ("muster_http", "muster_proxied", "muster_in_flight")),
    ("The promise and times of tasks", ("muster_slo", "muster_time", "muster_queue_wait", "muster_run_")),
    ("Tasks", ("muster_task", "muster_steps", "muster_tokens", "muster_events")),
    ("Queues and load", ("muster_queue", "muster_running", "muster_work_", "muster_mean", "muster_arrivals")),
    ("Owners", ("muster_owner",)),
    ("Starts of workers", ("muster_cold_start", "muster_worker_start_seconds")),
    (
        "Scaling",
        (
            *("muster_workers_", "muster_worker_crashes", "muster_worker_consecutive", "muster_worker_swaps"),
            *(
                "muster_scaling",
                "muster_controller",
                "muster_decision",
                "muster_model_cannot",
                "muster_device",
                "muster_machine",
            ),
        ),
    ),
    ("Workers", ("muster_worker", "muster_step_", "muster_batch")),
    ("The server", ("muster_", "process_")),
)


def tables(known: Mapping[str, Family]) -> str:
    """Return a table for each section, with every family once."""
    rows: dict[str, list[str]] = {heading: [] for heading, _ in _SECTIONS}
    for family in known.values():
        # The unit of a rate belongs to the queues.
        name = family.name.replace("muster_completions", "muster_arrivals")
        heading = next(heading for heading, starts in _SECTIONS if name.startswith(starts))
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows[heading].append(f"| `{family.name}` | {family.type} | {labels} | {family.help} |")
    parts = [
        f"### {heading}\n\n| name | type | labels | meaning |\n|---|---|---|---|\n" + "\n".join(found)
        for heading, found in rows.items()
    ]
    return "\n\n".join(parts)


def with_tables(page: str, known: Mapping[str, Family]) -> str:
    """Return the page with its generated part made again."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables(known)}\n\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write or check the tables of docs/metrics.md.")
    parser.add_argument("--check", action="store_true", help="fail if the page is not what the code gives")
    check = parser.parse_args(argv).check
    page = PAGE.read_text()
    expected = with_tables(page, families())
    if check and page != expected:
        print("docs/metrics.md is not what the code gives: run python -m scripts.monitoring.page", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(expected)
    print(f"docs/metrics.md: {len(families())} metrics")
    return 0


if __name__ == "__main__":
    sys.exit(main())
