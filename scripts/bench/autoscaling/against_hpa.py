"""Compare the default policy with the autoscaler of Kubernetes on random loads, both with their defaults.

    python -m scripts.bench.autoscaling.against_hpa --traffic quiet --count 48 --seeds 5 6 7 --json FILE.json
    python -m scripts.bench.autoscaling.against_hpa --traffic busy --count 20 --seeds 11 12 --json FILE.json

`quiet` has days with a request each 15 s to 30 min, `busy` has four hours with 5 to 50 requests per second. All is
simulated.
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
from scripts.bench.autoscaling.traffic.drawn import busy_hours, quiet_days

_GOAL = 99.0
_LOADS = {"quiet": quiet_days, "busy": busy_hours}


def compare(shape: Shape) -> dict[str, Any]:
    """Return the results of both on one load."""
    scenario, found = shape.scenario(), {}
    for policy in ("slo_work", "hpa"):
        (row,) = model_results(policy, run(policy, scenario))
        found[policy] = as_row(row)
    return {"load": shape.name, **found}


def summary(loads: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many loads each holds, and the cost where both do."""
    both = [load for load in loads if min(load[policy]["in_time"] for policy in ("slo_work", "hpa")) >= _GOAL]
    ratios = [load["slo_work"]["gpu_hours"] / load["hpa"]["gpu_hours"] for load in both]
    return {
        "loads": len(loads),
        "both_hold": len(both),
        "cheaper_or_equal": sum(ratio <= 1 for ratio in ratios),
        "gpu_hours_ratio_mean": round(statistics.mean(ratios), 3) if ratios else None,
        "gpu_hours_ratio_max": round(max(ratios), 3) if ratios else None,
        **{
            policy: {
                "hold": sum(load[policy]["in_time"] >= _GOAL for load in loads),
                "gpu_hours": round(sum(load[policy]["gpu_hours"] for load in loads), 1),
                "starts": sum(load[policy]["starts"] for load in loads),
            }
            for policy in ("slo_work", "hpa")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traffic", choices=_LOADS, required=True, help="which loads")
    parser.add_argument("--count", type=int, default=48, help="loads of each seed (default: 48)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5], help="of the random parameters (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    args = parser.parse_args()
    table = Table("seed", "loads", "hpa holds", "slo_work", "both", "at no more GPU-h", "of its GPU-h, mean", "max")
    found: dict[str, Any] = {}
    for seed in args.seeds:
        shapes = list(_LOADS[args.traffic](args.count, seed))
        loads = [compare(shape) for shape in track(shapes, f"seed {seed}")]
        one = summary(loads)
        found[str(seed)] = {"summary": one, "loads": loads}
        cells = [seed, one["loads"], one["hpa"]["hold"], one["slo_work"]["hold"], one["both_hold"]]
        cells += [one["cheaper_or_equal"], one["gpu_hours_ratio_mean"], one["gpu_hours_ratio_max"]]
        table.add_row(*map(str, cells))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
