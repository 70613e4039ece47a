r"""Compare the default policy with autoscalers tuned in hindsight, on many shapes of traffic.

    TRACES_DIR=traces python -m scripts.bench.autoscaling.shapes --json scripts/bench/results/autoscaling_shapes.json

Each reference autoscaler has a small grid of settings. Per shape the cheapest one with 99 % in time counts, so the
references know the traffic and `slo_work` does not. `--half design` runs only the shapes that the defaults were chosen
on. `--drawn 52 --seed 2` runs shapes with random parameters instead. `--cache` keeps the results of the references,
which take most of the time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from configs.scaling import Scaling
from controller.simulator.agents import ReferenceAgent, ReferenceAutoscaler
from controller.simulator.cli import run
from controller.simulator.reference import Hpa, Kpa, RayServe
from controller.simulator.results import PolicyResult, model_results
from controller.simulator.scaling_fields import with_fields
from controller.simulator.scenarios import Scenario
from scripts.bench.autoscaling.traffic.catalog import Shape, all_shapes
from scripts.bench.autoscaling.traffic.drawn import drawn

_GOAL = 0.99


def reference(name: str, settings: tuple[float, ...], batch: int) -> ReferenceAutoscaler:
    """Return a reference autoscaler with a target in fractions of a batch and a delay of scale-down in seconds."""
    target, down_s = settings
    match name:
        case "hpa":
            return Hpa(target=target * batch, down_stabilization_s=down_s)
        case "kpa":
            return Kpa(container_concurrency=batch, target_percentage=100 * target, scale_down_delay_s=down_s)
        case _:
            return RayServe(target_ongoing_requests=target * batch, upscale_delay_s=5, downscale_delay_s=down_s)


def grid() -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield the settings of the references: a name and its two values."""
    yield from (("hpa", settings) for settings in itertools.product((0.4, 0.55, 0.7, 0.85, 1.0), (60.0, 300.0, 900.0)))
    yield from (("kpa", settings) for settings in itertools.product((0.4, 0.7, 1.0), (120.0, 600.0)))
    yield from (("ray", settings) for settings in itertools.product((0.4, 0.7, 1.0), (60.0, 600.0)))
    yield from (("queue_depth", settings) for settings in itertools.product((0.5, 1.0, 2.0), (60.0, 300.0)))


def run_reference(name: str, settings: tuple[float, ...], scenario: Scenario, batch: int) -> PolicyResult:
    """Simulate one setting of a reference."""
    if name == "queue_depth":
        up, hold_s = settings
        changes = {
            "policy": name,
            "scale_up_at": up * batch,
            "scale_down_at": up * batch / 4,
            "scale_down_hold_s": hold_s,
        }
        scalings = {model: _changed(scaling, changes) for model, scaling in scenario.scalings.items()}
        (row,) = model_results(name, run(name, Scenario(**_fields(scenario) | {"scalings": scalings})))
        return row
    targets = scenario.targets()
    agent = ReferenceAgent(targets, lambda _model: reference(name, settings, batch))
    (row,) = model_results(name, scenario.run(agent, targets))
    return row


def _changed(scaling: Scaling, changes: dict[str, Any]) -> Scaling:
    return with_fields(scaling, changes)


def _fields(scenario: Scenario) -> dict[str, Any]:
    return {name: getattr(scenario, name) for name in Scenario.__dataclass_fields__}


def as_row(result: PolicyResult) -> dict[str, Any]:
    return {
        "in_time": round(100 * result.in_slo, 3),
        "gpu_hours": round(result.gpu_hours, 3),
        "starts": result.cold_starts,
        "wait_p99_s": round(min(result.wait_p99_s, 1e6), 2),
    }


def references(shape: Shape, cache: dict[str, Any]) -> dict[str, Any]:
    """Return the result of each setting of the references, from the cache if it has them."""
    if shape.name not in cache:
        scenario = shape.scenario()
        cache[shape.name] = {
            f"{name} {settings[0]:g} {settings[1]:g}": as_row(run_reference(name, settings, scenario, shape.batch))
            for name, settings in grid()
        }
    found: dict[str, Any] = cache[shape.name]
    return found


def best_reference(rows: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the cheapest with 99 % in time, or else the one with the most in time."""
    holding = {name: row for name, row in rows.items() if row["in_time"] >= 100 * _GOAL}
    if holding:
        return min(holding.items(), key=lambda item: item[1]["gpu_hours"])
    return max(rows.items(), key=lambda item: (item[1]["in_time"], -item[1]["gpu_hours"]))


def compare(shape: Shape, cache: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a shape: the default policy and the best reference."""
    scenario = shape.scenario()
    started = time.process_time()
    (own,) = model_results("slo_work", run("slo_work", scenario))
    took_s = time.process_time() - started
    name, best = best_reference(references(shape, cache))
    row = as_row(own) | {"requests": own.requests, "cpu_s": round(took_s, 2), "unserved": own.unserved}
    holds = best["in_time"] >= 100 * _GOAL
    promise = row["in_time"] >= 100 * _GOAL or not holds
    cheap = not holds or row["gpu_hours"] <= best["gpu_hours"]
    return {"design": shape.design, "slo_work": row, "best": {"name": name, **best}, "promise": promise, "cheap": cheap}


def _print(console: Console, rows: dict[str, Any], title: str) -> None:
    table = Table("shape", "in time %", "GPU-h", "starts", "best reference", "in time %", "GPU-h", "", title=title)
    for name, row in rows.items():
        own, best = row["slo_work"], row["best"]
        verdict = ("" if row["promise"] else "LATE ") + (
            "" if row["cheap"] else f"+{100 * own['gpu_hours'] / best['gpu_hours'] - 100:.0f} %"
        )
        table.add_row(
            name,
            f"{own['in_time']:.2f}",
            f"{own['gpu_hours']:.2f}",
            str(own["starts"]),
            best["name"],
            f"{best['in_time']:.2f}",
            f"{best['gpu_hours']:.2f}",
            verdict,
        )
    console.print(table)
    held = sum(row["promise"] for row in rows.values())
    won = sum(row["promise"] and row["cheap"] for row in rows.values())
    console.print(f"{len(rows)} shapes: the promise is held in {held}, and at no more GPU-hours in {won}")


def draw(rows: dict[str, Any], file: Path) -> None:
    """Draw each shape: the requests in time, and the GPU-hours relative to the best reference."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (late, cost) = pyplot.subplots(1, 2, figsize=(13, 11), sharey=True)
    names = list(reversed(rows))
    for place, name in enumerate(names):
        own, best = rows[name]["slo_work"], rows[name]["best"]
        late.plot([own["in_time"], best["in_time"]], [place, place], color="lightgray", zorder=1)
        late.scatter(best["in_time"], place, color="tab:gray", marker="|", s=80, zorder=2)
        late.scatter(own["in_time"], place, color="tab:green" if rows[name]["promise"] else "tab:red", zorder=3)
        colour = "tab:green" if rows[name]["cheap"] else "tab:orange"
        cost.barh(place, own["gpu_hours"] / best["gpu_hours"], color=colour)
    late.set_yticks(range(len(names)), [f"{name}{'' if rows[name]['design'] else ' *'}" for name in names])
    late.axvline(100 * _GOAL, color="black", linewidth=0.8)
    late.set_xlabel("requests in time, %; dot: slo_work, line: best reference")
    late.set_xlim(95, 100.1)
    cost.axvline(1, color="black", linewidth=0.8)
    cost.set_xlabel("GPU-hours of slo_work / best reference")
    figure.suptitle("slo_work and references tuned in hindsight; * shapes of the second half")
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("design", "report"), help="run only one half of the shapes")
    parser.add_argument("--only", metavar="TEXT", help="run only shapes whose name contains this text")
    parser.add_argument("--drawn", type=int, metavar="COUNT", help="run shapes with random parameters instead")
    parser.add_argument("--seed", type=int, default=1, help="of the random parameters (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the table")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="results of the references from an earlier run")
    args = parser.parse_args()
    folder = Path(os.environ["TRACES_DIR"]) if "TRACES_DIR" in os.environ else None
    cache: dict[str, Any] = json.loads(args.cache.read_text()) if args.cache and args.cache.exists() else {}
    rows: dict[str, Any] = {}
    shapes = all_shapes(folder)
    if args.drawn:
        shapes = {shape.name: shape for shape in drawn(args.drawn, args.seed, folder)}
    for name, shape in shapes.items():
        if (args.half and (args.half == "design") != shape.design) or (args.only and args.only not in name):
            continue
        rows[name] = compare(shape, cache)
        if args.cache:
            args.cache.write_text(json.dumps(cache))
    _print(Console(width=150), rows, "the default policy and the best reference in hindsight")
    if args.plot:
        draw(rows, args.plot)
    if args.json:
        args.json.write_text(json.dumps({"goal": _GOAL, "shapes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
