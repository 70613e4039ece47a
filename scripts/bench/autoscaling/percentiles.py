"""Ask the default policy for several percentiles of a recorded day, and count what was in time.

    python -m scripts.bench.autoscaling.percentiles --trace gentd26_day.csv --json FILE.json

The scenarios are those of `compare_policies`. An hour counts if at least 100 requests arrived within it. All is
simulated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from controller.simulator.cli import run
from controller.simulator.model_sim import ModelSim
from controller.simulator.results import model_results
from controller.simulator.scaling_fields import with_fields
from controller.simulator.scenarios import PRESETS, Scenario, from_preset
from controller.simulator.traces import read_trace

_ASKED = (50.0, 90.0, 95.0, 99.0, 99.9)
#: Preset and start time in seconds by the name of the scenario.
_SCENARIOS = {"batch 1": ("s2", 40.0), "batch 4": ("s3", 40.0), "batch 1, a start of 5 s": ("s2", 5.0)}
_HOUR_S, _DAY_S = 3600.0, 86400.0
_LEAST_REQUESTS = 100


def hours_in_time(model: ModelSim) -> list[float]:
    """Return the percentage in time of each hour with enough requests, the lowest first."""
    hours: dict[int, list[bool]] = {}
    for arrival, wait_s in zip(model.times, model.waits, strict=True):
        hours.setdefault(int(arrival // _HOUR_S), []).append(wait_s <= model.profile.max_wait_s)
    return sorted(100 * sum(hour) / len(hour) for hour in hours.values() if len(hour) >= _LEAST_REQUESTS)


def measure(scenario: Scenario, asked: float) -> dict[str, Any]:
    """Return the result for one percentile."""
    scalings = {name: with_fields(one, {"slo": {"percentile": asked}}) for name, one in scenario.scalings.items()}
    result = run("slo_work", replace(scenario, scalings=scalings))
    (row,) = model_results("slo_work", result)
    (model,) = result.models.values()
    hours = hours_in_time(model)
    return {
        "asked": asked,
        "in_time": round(100 * row.in_slo, 3),
        "worst_hour": round(hours[0], 2),
        "hours_below": sum(hour < asked for hour in hours),
        "hours": len(hours),
        "gpu_hours": round(row.gpu_hours, 2),
        "starts": row.cold_starts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE.csv")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table")
    args = parser.parse_args()
    (traffic,) = read_trace(args.trace).values()
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (preset, start_s) in _SCENARIOS.items():
        scenario = from_preset(PRESETS[preset], traffic, _DAY_S, cold_starts_s=(start_s,))
        found[name] = [measure(scenario, asked) for asked in _ASKED]
        table = Table(*found[name][0], title=name)
        for row in found[name]:
            table.add_row(*(str(value) for value in row.values()))
        Console(width=100).print(table)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
