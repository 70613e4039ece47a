r"""Compare Muster's policies and reference autoscalers on a day of image requests, and on variants of this trace.

    python -m scripts.bench.autoscaling.compare_policies --trace gentd26_day.csv \
        --json scripts/bench/results/autoscaling.json

No policy was tuned on the variants. The license of the trace does not allow its distribution, so the repository holds
only derived numbers. `--bound lower` computes the lower bounds. `--bound search` also finds the best schedules, which
takes minutes for each scenario. Otherwise the JSON file provides them.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from controller.policies import POLICIES
from controller.simulator import table
from controller.simulator.cli import run
from controller.simulator.reference import BASELINES
from controller.simulator.reference.lower_bound import min_hours
from controller.simulator.reference.oracle import best_schedule
from controller.simulator.results import PolicyResult, model_results
from controller.simulator.scaling_fields import with_fields
from controller.simulator.scenario_options import describe
from controller.simulator.scenarios import PRESETS, VARIANTS, Preset, Scenario, Traffic, from_preset
from controller.simulator.traces import read_trace

_DAY_S = 86400.0
_POLICIES = [name for name in POLICIES if name not in ("schedule", "static")]


def scenarios(traffic: Traffic) -> Iterator[tuple[str, Scenario]]:
    for name, preset in PRESETS.items():
        yield name, from_preset(preset, traffic, _DAY_S)
    for variant in VARIANTS:
        if variant != "mixed":
            change = Preset(0.25, variant=variant)
            yield f"s2 {variant}", from_preset(change, traffic, _DAY_S)
    yield "s2, start 5 s", from_preset(PRESETS["s2"], traffic, _DAY_S, cold_starts_s=(5.0,))
    ticks = from_preset(PRESETS["s2"], traffic, _DAY_S)
    for interval_s in (5, 10, 60):
        scalings = {name: with_fields(scaling, {"interval_s": interval_s}) for name, scaling in ticks.scalings.items()}
        yield f"s2, tick {interval_s} s", Scenario(**{**_fields(ticks), "scalings": scalings})


def _fields(scenario: Scenario) -> dict[str, Any]:
    return {name: getattr(scenario, name) for name in Scenario.__dataclass_fields__}


def search_schedule(scenario: Scenario) -> dict[str, float]:
    """Return the simulated cost of the cheapest schedule found that serves 99 % in time."""
    started = time.process_time()
    best = best_schedule(scenario)
    assert best is not None
    return {"gpu_hours": best.gpu_hours, "in_slo": best.in_slo, "took_cpu_s": round(time.process_time() - started)}


def compute_bound(scenario: Scenario) -> dict[str, float]:
    """Return the GPU-hours that no schedule with 99 % in time can go below."""
    started = time.process_time()
    hours = sum(min_hours(scenario, model) for model in scenario.profiles)
    return {"gpu_hours": hours, "took_cpu_s": round(time.process_time() - started)}


def compare(
    scenario: Scenario, names: list[str], lower_hours: float | None, best_hours: float | None
) -> tuple[list[PolicyResult], dict[str, float]]:
    """Return the result of each policy, and the CPU seconds of its simulation."""
    results, cpu_s = [], {}
    for name in names:
        started = time.process_time()
        (row,) = model_results(name, run(name, scenario))
        results.append(row.with_bounds(lower_hours, best_hours))
        cpu_s[name] = round(time.process_time() - started, 2)
    return results, cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--bound", choices=("lower", "search"), help="compute only bounds, or also best schedules")
    parser.add_argument("--policies", metavar="A,B,...", help="run only these policies")
    parser.add_argument("--only", metavar="PREFIX", help="run only scenarios whose name starts with this prefix")
    args = parser.parse_args()
    console = Console(width=120)
    (traffic,) = read_trace(args.trace).values()
    known: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {}
    known |= {"where": f"{platform.machine()}, Python {platform.python_version()}, seconds are of one CPU core"}
    for name, scenario in scenarios(traffic):
        if args.only and not name.startswith(args.only):
            continue
        entry = known.setdefault("scenarios", {}).setdefault(name, {})
        if args.bound and not name.startswith("s2, tick"):
            entry["lower_bound"] = compute_bound(scenario)
            if args.bound == "search":
                entry["best_known"] = search_schedule(scenario)
            print(name, entry["lower_bound"], entry.get("best_known"), flush=True)
        if not args.bound:
            bound_name = "s2" if name.startswith("s2, tick") else name
            bounds = known["scenarios"].get(bound_name, {})
            lower, best = (bounds.get(key, {}).get("gpu_hours") for key in ("lower_bound", "best_known"))
            names = ["slo_work"] if name.startswith("s2, tick") else [*_POLICIES, *BASELINES]
            if args.policies:
                names = args.policies.split(",")
            results, cpu_s = compare(scenario, names, lower, best)
            work_s = sum(map(sum, (traffic.work for traffic in scenario.traffic.values())))
            table.print_table(console, f"{name}: {describe(scenario)}", results, [f"{work_s / 3600:.1f} h of work"])
            entry |= {"what": describe(scenario), "rows": [row.as_json() for row in results], "took_cpu_s": cpu_s}
        args.json.write_text(json.dumps(known, indent=1) + "\n")


__all__ = ["compare", "compute_bound", "scenarios", "search_schedule"]

if __name__ == "__main__":
    main()
