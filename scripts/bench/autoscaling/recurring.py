"""Does it pay to learn the load that recurs? Simulated days of one model, with and without `recurring_load.learn`.

    python -m scripts.bench.autoscaling.recurring --json scripts/bench/results/autoscaling_recurring.json

Work is log-normal with a mean of 4 s, starts take 40 s, and a request may wait for 10 s. Nothing was learnt before the
first day.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from controller.simulator.cli import run
from controller.simulator.results import model_results
from controller.simulator.scaling_fields import with_fields
from controller.simulator.scenarios import Scenario, Traffic
from scripts.bench.autoscaling.traffic import generators as g
from scripts.bench.autoscaling.traffic.catalog import Shape

_HOUR_S, _DAY_S = 3600.0, 86400.0
_DAYS = 9
_END_S = _DAYS * _DAY_S


def _at_full_hours(rng: random.Random) -> Traffic:
    bunches = g.bunched([hour * _HOUR_S for hour in range(1, 24 * _DAYS)], 60, 20, rng)
    return g.log_normal(g.merged(g.steady(0.1, _END_S, rng), bunches), 4, 0.7, rng)


def _at_nine(rng: random.Random) -> Traffic:
    bunches = g.bunched([day * _DAY_S + 9 * _HOUR_S for day in range(_DAYS)], 80, 20, rng)
    return g.log_normal(g.merged(g.sine(0.1, 0.9, _DAY_S, _END_S, rng), bunches), 4, 0.7, rng)


def _by_day(rng: random.Random) -> Traffic:
    return g.log_normal(g.sine(0.4, 0.9, _DAY_S, _END_S, rng), 4, 0.7, rng)


def _random(rng: random.Random) -> Traffic:
    return g.log_normal(g.wandering(0.4, 0.2, 120, _END_S, rng), 4, 0.7, rng)


_TRAFFIC: Mapping[str, Callable[[random.Random], Traffic]] = {
    "60 at each full hour": _at_full_hours,
    "80 at nine, daily cycle": _at_nine,
    "daily cycle": _by_day,
    "nothing recurs": _random,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.autoscaling.recurring", description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    rows = [
        {"traffic": name, "learn": learn} | _simulate(name, learn=learn)
        for name in track(_TRAFFIC, description="days")
        for learn in (False, True)
    ]
    table = Table("traffic", "recurring_load.learn", "in time, %", "GPU-h", "starts", title=f"{_DAYS} simulated days")
    for row in rows:
        table.add_row(
            row["traffic"], str(row["learn"]), f"{row['in_time']:.2f}", f"{row['gpu_hours']:.1f}", str(row["starts"])
        )
    Console().print(table)
    if args.json is not None:
        args.json.write_text(json.dumps({"days": _DAYS, "rows": rows}, indent=1))


def _simulate(name: str, *, learn: bool) -> dict[str, Any]:
    scenario = Shape(name, _TRAFFIC[name], _END_S / _HOUR_S, design=True, max_workers=40).scenario()
    scaling = with_fields(scenario.scalings["m"], {"recurring_load": {"learn": learn}})
    fields = {field: getattr(scenario, field) for field in Scenario.__dataclass_fields__}
    (result,) = model_results("slo_work", run("slo_work", Scenario(**fields | {"scalings": {"m": scaling}})))
    return {"in_time": 100 * result.in_slo, "gpu_hours": result.gpu_hours, "starts": result.cold_starts}


if __name__ == "__main__":
    main()
