"""`python -m controller simulate`: a table of what policies would have done with a trace."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from configs.cli import EXIT_USAGE
from controller.policies import POLICIES, CannotImport, find
from controller.simulator import table
from controller.simulator.agents import Known, Pilot, Role, Thinker
from controller.simulator.plot import draw
from controller.simulator.reference import BASELINES
from controller.simulator.reference.oracle import best_known
from controller.simulator.results import Row, least_hours, rows, series, total
from controller.simulator.scenario_options import Refused, changed, described, make_parser, scenario_from, write_json
from controller.simulator.scenarios import Scenario
from controller.simulator.simulator import Replayed, silent

_DESCRIPTION = """\
Simulate a day of traffic with the live controller's own decisions, and compare policies.

    python -m controller simulate --trace synthetic:daily?rate=0.5 --preset s2 --compare
    python -m controller simulate --trace arrivals.csv --config my.yaml --policy slo_work --policy hpa
"""
_EVERY_S = 60.0
#: Every model with its own policy, where they differ.
_CONFIGURED = "as configured"
_WIDTH = 120
#: Of the requests, how many are in time by the best schedule.
_GOAL = 0.99


def main(argv: Sequence[str]) -> int:
    """Simulate and print. Returns the exit status: 0 done, 2 refused."""
    parser = make_parser("python -m controller simulate", _DESCRIPTION)
    parser.add_argument("--policy", action="append", metavar="NAME", help=f"of ours, or {', '.join(BASELINES)}")
    parser.add_argument("--compare", action="store_true", help="all of them")
    parser.add_argument(
        "--bound", metavar="HOURS", help="of the best known schedule; `search` looks for it, which takes a while"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, with the samples of the picture")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw arrivals, workers and waits")
    args = parser.parse_args(argv)
    try:
        scenario = scenario_from(args)
        console = Console()
        # Cut columns are of no use in a file.
        wide = console if console.is_terminal else Console(width=_WIDTH)
        _compare(args, scenario, _pilots(args, scenario), wide)
    except Refused as refusal:
        print(f"cannot simulate: {refusal}", file=sys.stderr)
        return EXIT_USAGE
    return 0


def _pilots(args: argparse.Namespace, scenario: Scenario) -> list[str]:
    configured = list({scaling.policy for scaling in scenario.scalings.values()})
    comparable = [name for name in POLICIES if name not in ("schedule", "static")]
    names = list(args.policy or (configured if len(configured) == 1 else [_CONFIGURED]))
    if args.compare:
        names = list(dict.fromkeys([*names, *comparable, *BASELINES]))
    for name in names:
        if name not in POLICIES and name not in BASELINES and name != _CONFIGURED and ":" not in name:
            allowed = ", ".join([*POLICIES, *BASELINES])
            raise Refused(
                f"no such policy: {name}; allowed: {allowed}, or a function of your own as package.module:name"
            )
    return names


def pilot_for(name: str, scenario: Scenario) -> tuple[Pilot, Mapping[str, Role]]:
    """One of our policies for every model, or one of the known autoscalers, with the models' parts in the pool.

    Raises `Refused`.
    """
    roles = scenario.roles()
    if name in BASELINES:
        batches = {model: service.batch for model, service in scenario.services.items()}
        most = {model: role.limits.max_workers for model, role in roles.items()}
        return Known(roles, lambda model: BASELINES[name](batches[model], most[model])), roles
    if name != _CONFIGURED:
        roles = {model: _with(role, name) for model, role in roles.items()}
    try:
        return Thinker(roles, {model: find(role.scaling.policy) for model, role in roles.items()}), roles
    except CannotImport as error:
        raise Refused(str(error)) from None


def _with(role: Role, policy: str) -> Role:
    if role.scaling.policy == policy:
        return role
    try:
        return role._replace(scaling=changed(role.scaling, {"policy": policy}))
    except ValidationError as error:
        raise Refused("; ".join(problem["msg"] for problem in error.errors())) from None


def run(
    name: str, scenario: Scenario, sample_s: float = float("inf"), tell: Callable[[float], None] = silent
) -> Replayed:
    """One policy or autoscaler by name over the scenario."""
    pilot, roles = pilot_for(name, scenario)
    return scenario.run(pilot, roles, sample_s=sample_s, tell=tell)


def _bound(args: argparse.Namespace, scenario: Scenario, console: Console) -> float | None:
    """GPU-hours of the best known schedule; None where nobody asks for it."""
    if args.bound is None:
        return None
    if args.bound != "search":
        try:
            return float(args.bound)
        except ValueError:
            raise Refused(f"--bound {args.bound} must be a number of GPU-hours, or search") from None
    if len(scenario.services) > 1:
        raise Refused("--bound search is for one model")
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("the best schedule", total=1.0)
        best = best_known(scenario, _GOAL, tell=lambda share: progress.update(bar, completed=share))
    if best is None:
        raise Refused(f"no schedule was found with {100 * _GOAL:g} % in time; give more --gpus")
    return best.gpu_hours


def _compare(args: argparse.Namespace, scenario: Scenario, names: Sequence[str], console: Console) -> None:
    found: dict[str, tuple[list[Row], Replayed, float]] = {}
    bound = _bound(args, scenario, console)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for name in names:
            bar = progress.add_task(name, total=scenario.span_s)
            began = time.perf_counter()
            replayed = run(name, scenario, _EVERY_S, lambda now, bar=bar: progress.update(bar, completed=now))  # type: ignore[misc]
            found[name] = (_rows(name, replayed, bound), replayed, time.perf_counter() - began)
    least = sum(least_hours(station) for station in next(iter(found.values()))[1].pool.stations.values())
    notes = [f"no schedule costs less than {least:.1f} GPU-h: full batches all the time"]
    if bound:
        notes.append(f"x best: of {bound:.1f} GPU-h, the best schedule found for somebody who knows the future")
    table.show(console, described(scenario), [row for parts, _, _ in found.values() for row in parts], notes)
    if args.json:
        write_json(args.json, _as_json(args, scenario, found, least))
    if args.plot:
        _plot(args.plot, scenario, {name: replayed for name, (_, replayed, _) in found.items()})


def _rows(name: str, replayed: Replayed, bound: float | None) -> list[Row]:
    parts = rows(name, replayed)
    if len(parts) == 1:
        return [parts[0].against(bound)]
    return [*parts, total(name, parts).against(bound)]


def _as_json(
    args: argparse.Namespace, scenario: Scenario, found: Mapping[str, tuple[list[Row], Replayed, float]], least: float
) -> dict[str, Any]:
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items() if value}
    return {
        "scenario": described(scenario),
        "options": given,
        "least_gpu_hours": least,
        "rows": [row.as_json() for parts, _, _ in found.values() for row in parts],
        "took_s": {name: round(took, 2) for name, (_, _, took) in found.items()},
        "samples": {name: series(replayed) for name, (_, replayed, _) in found.items()},
    }


def _plot(file: Path, scenario: Scenario, runs: Mapping[str, Replayed]) -> None:
    model = next(iter(scenario.services))
    samples = {name: replayed.samples[model] for name, replayed in runs.items()}
    try:
        draw(file, described(scenario), samples, scenario.scalings[model].slo.max_wait_s)
    except ImportError:
        raise Refused("--plot needs matplotlib: pip install matplotlib") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{file} cannot be drawn: {error}") from None
