"""Compare the default policy with the autoscaler of Kubernetes on days with few requests, both with their defaults.

    python -m scripts.bench.autoscaling.quiet_days --count 48 --seeds 5 6 7 --json FILE.json

Each day has random parameters: a request each 15 s to 30 min. All is simulated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from controller.simulator.cli import run
from controller.simulator.results import model_results
from scripts.bench.autoscaling.shapes import as_row
from scripts.bench.autoscaling.traffic.catalog import Shape
from scripts.bench.autoscaling.traffic.drawn import quiet_days

_GOAL = 99.0


def compare(shape: Shape) -> dict[str, Any]:
    """Return the results of both on one day."""
    scenario, found = shape.scenario(), {}
    for policy in ("slo_work", "hpa"):
        (row,) = model_results(policy, run(policy, scenario))
        found[policy] = as_row(row)
    return {"day": shape.name, **found}


def summary(days: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many days each holds, and the cost where both do."""
    both = [day for day in days if min(day[policy]["in_time"] for policy in ("slo_work", "hpa")) >= _GOAL]
    ratios = [day["slo_work"]["gpu_hours"] / day["hpa"]["gpu_hours"] for day in both]
    return {
        "days": len(days),
        "both_hold": len(both),
        "cheaper_or_equal": sum(ratio <= 1 for ratio in ratios),
        "gpu_hours_ratio_mean": round(statistics.mean(ratios), 3) if ratios else None,
        "gpu_hours_ratio_max": round(max(ratios), 3) if ratios else None,
        **{
            policy: {
                "hold": sum(day[policy]["in_time"] >= _GOAL for day in days),
                "gpu_hours": round(sum(day[policy]["gpu_hours"] for day in days), 1),
                "starts": sum(day[policy]["starts"] for day in days),
            }
            for policy in ("slo_work", "hpa")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=48, help="days of each seed (default: 48)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5], help="of the random parameters (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    args = parser.parse_args()
    table = Table("seed", "days", "hpa holds", "slo_work", "both", "at no more GPU-h", "of its GPU-h, mean", "max")
    found: dict[str, Any] = {}
    for seed in args.seeds:
        days = [compare(shape) for shape in track(list(quiet_days(args.count, seed)), f"seed {seed}")]
        one = summary(days)
        found[str(seed)] = {"summary": one, "days": days}
        cells = [seed, one["days"], one["hpa"]["hold"], one["slo_work"]["hold"], one["both_hold"]]
        cells += [one["cheaper_or_equal"], one["gpu_hours_ratio_mean"], one["gpu_hours_ratio_max"]]
        table.add_row(*map(str, cells))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
