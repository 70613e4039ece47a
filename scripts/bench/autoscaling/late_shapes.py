"""Find settings for the shapes that `slo_work` serves too late with its defaults, though some reference holds 99 %.

    TRACES_DIR=traces python -m scripts.bench.autoscaling.late_shapes \
        --shapes scripts/bench/results/autoscaling_shapes.json \
        --json scripts/bench/results/autoscaling_late_shapes.json

The shapes are read from the result of `scripts.bench.autoscaling.shapes`. Each setting is one that a user can give: a
higher percentile, or a least number of workers. The cheapest with 99 % in time counts.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from configs.scaling import Scaling
from controller.simulator.cli import run
from controller.simulator.results import model_results
from controller.simulator.scaling_fields import with_fields
from controller.simulator.scenarios import Scenario
from scripts.bench.autoscaling.shapes import as_row, best_reference
from scripts.bench.autoscaling.traffic.catalog import Shape, all_shapes

_GOAL = 99.0
_PERCENTILES = (99.5, 99.9)
_MIN_WORKERS = (2, 3, 4, 6, 8, 11, 16)


def settings(shape: Shape) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the settings to try: a name and the changed fields of the scaling section."""
    for percentile in _PERCENTILES:
        slo = {"max_wait_s": shape.max_wait_s, "percentile": percentile}
        yield f"percentile: {percentile:g}", {"slo": slo}
    yield from (
        (f"min_workers: {least}", {"min_workers": least}) for least in _MIN_WORKERS if least < shape.max_workers
    )


def simulate(scenario: Scenario, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the result of the default policy with these fields changed."""
    scalings: dict[str, Scaling] = {name: with_fields(one, changes) for name, one in scenario.scalings.items()}
    fields = {name: getattr(scenario, name) for name in Scenario.__dataclass_fields__}
    (result,) = model_results("slo_work", run("slo_work", Scenario(**fields | {"scalings": scalings})))
    return as_row(result)


def find(shape: Shape) -> dict[str, Any]:
    """Return the result of each setting, and the cheapest that keeps the promise; None if none does."""
    scenario = shape.scenario()
    rows = {name: simulate(scenario, changes) for name, changes in settings(shape)}
    holding = any(row["in_time"] >= _GOAL for row in rows.values())
    return {"settings": rows, "best": best_reference(rows)[0] if holding else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=Path, required=True, metavar="FILE", help="result of the shapes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    args = parser.parse_args()
    folder = Path(os.environ["TRACES_DIR"]) if "TRACES_DIR" in os.environ else None
    known, shapes, found = json.loads(args.shapes.read_text())["shapes"], all_shapes(folder), {}
    table = Table("shape", "in time %", "GPU-h", "setting", "in time %", "GPU-h", "best reference", "GPU-h")
    for name, row in known.items():
        if row["promise"] or name not in shapes:
            continue
        found[name] = find(shapes[name])
        own, best, other = row["slo_work"], found[name]["best"], row["best"]
        after = found[name]["settings"][best] if best else None
        shown = (f"{after['in_time']:.2f}", f"{after['gpu_hours']:.1f}") if after else ("", "")
        cells = (f"{own['in_time']:.2f}", f"{own['gpu_hours']:.1f}", best or "none", *shown, other["name"])
        table.add_row(name, *cells, f"{other['gpu_hours']:.1f}")
    Console(width=150).print(table)
    if args.json:
        args.json.write_text(json.dumps({"goal": _GOAL, "shapes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
