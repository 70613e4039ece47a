"""`python -m controller simulate`: compare scaling policies on a trace."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from configs.cli import EXIT_USAGE
from controller.policies import POLICIES, PolicyImportError, find
from controller.simulator import table
from controller.simulator.agents import MusterAgent, ReferenceAgent, ScalingAgent, ScalingTarget
from controller.simulator.cost_bounds import CostBounds, cost_bounds
from controller.simulator.option_checks import TOO_LARGE, InvalidScenario, check_output
from controller.simulator.plot import PLOT_FORMATS, draw_plot
from controller.simulator.reference import BASELINES
from controller.simulator.results import PolicyResult, min_gpu_hours, model_results, samples_as_json, total_result
from controller.simulator.scaling_fields import InvalidScaling, with_fields
from controller.simulator.scenario_options import describe, scenario_from, write_json
from controller.simulator.scenario_parser import make_parser
from controller.simulator.scenarios import Scenario
from controller.simulator.simulator import SimulationResult, ignore_progress

_DESCRIPTION = """\
Simulate the live controller's autoscaler on a traffic trace, and compare policies.

    python -m controller simulate --trace synthetic:daily?rate=0.5 --preset s2 --compare
    python -m controller simulate --trace arrivals.csv --config my.yaml --policy slo_work --policy hpa
"""
_SAMPLE_S = 60.0
#: Name of the run in which models with different policies use their own.
_CONFIGURED = "as configured"
_WIDTH = 120


def main(argv: Sequence[str]) -> int:
    """Simulate and print. Returns the exit status: 0, or 2 for invalid options."""
    parser = make_parser("python -m controller simulate", _DESCRIPTION)
    parser.add_argument(
        "--policy", action="append", metavar="NAME", help=f"a policy of Muster, or {', '.join(BASELINES)}"
    )
    parser.add_argument("--compare", action="store_true", help="run all policies")
    parser.add_argument(
        "--bound",
        metavar="HOURS",
        help="GPU-hours of the best schedule; `lower` computes a bound that no schedule can go below, "
        "`search` also the best schedule that it finds",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and samples")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="plot arrivals, workers and waits; requires matplotlib"
    )
    args = parser.parse_args(argv)
    try:
        check_output("--json", args.json, args.trace)
        _check_plot(args.plot, args.trace)
        scenario = scenario_from(args)
        console = Console()
        # A file needs all columns in full.
        output = console if console.is_terminal else Console(width=_WIDTH)
        _compare(args, scenario, _policy_names(args, scenario), output)
    except InvalidScenario as error:
        print(f"cannot simulate: {error}", file=sys.stderr)
        return EXIT_USAGE
    except MemoryError:
        print(f"cannot simulate: {args.trace} {TOO_LARGE}", file=sys.stderr)
        return EXIT_USAGE
    return 0


def _check_plot(file: Path | None, trace: str) -> None:
    """Raise `InvalidScenario` if no plot can be drawn into this file."""
    if file is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidScenario(f"--plot requires matplotlib: {sys.executable} -m pip install matplotlib")
    if file.suffix.lower() not in PLOT_FORMATS:
        raise InvalidScenario(f"--plot {file} must end in {', '.join(PLOT_FORMATS)}")
    check_output("--plot", file, trace)


def _policy_names(args: argparse.Namespace, scenario: Scenario) -> list[str]:
    configured = list({scaling.policy for scaling in scenario.scalings.values()})
    comparable = [name for name in POLICIES if name not in ("schedule", "static")]
    names = list(args.policy or (configured if len(configured) == 1 else [_CONFIGURED]))
    if args.compare:
        names = list(dict.fromkeys([*names, *comparable, *BASELINES]))
    for name in names:
        if name not in POLICIES and name not in BASELINES and name != _CONFIGURED and ":" not in name:
            allowed = ", ".join([*POLICIES, *BASELINES])
            raise InvalidScenario(
                f"no such policy: {name}; allowed: {allowed}, or your own function as package.module:name"
            )
    return names


def agent_for(name: str, scenario: Scenario) -> tuple[ScalingAgent, Mapping[str, ScalingTarget]]:
    """Return the agent of a policy or reference autoscaler, and its targets. Raises `InvalidScenario`."""
    targets = scenario.targets()
    if name in BASELINES:
        batches = {model: profile.batch for model, profile in scenario.profiles.items()}
        max_workers = {model: target.limits.max_workers for model, target in targets.items()}
        return ReferenceAgent(targets, lambda model: BASELINES[name](batches[model], max_workers[model])), targets
    if name != _CONFIGURED:
        targets = {model: _with_policy(target, name) for model, target in targets.items()}
    try:
        return MusterAgent(targets, {model: find(target.scaling.policy) for model, target in targets.items()}), targets
    except PolicyImportError as error:
        raise InvalidScenario(str(error)) from None


def _with_policy(target: ScalingTarget, policy: str) -> ScalingTarget:
    if target.scaling.policy == policy:
        return target
    try:
        return target._replace(scaling=with_fields(target.scaling, {"policy": policy}))
    except InvalidScaling as error:
        raise InvalidScenario(str(error)) from None


def run(
    name: str,
    scenario: Scenario,
    sample_s: float = float("inf"),
    on_progress: Callable[[float], None] = ignore_progress,
) -> SimulationResult:
    """Simulate a policy or reference autoscaler by name."""
    agent, targets = agent_for(name, scenario)
    return scenario.run(agent, targets, sample_s=sample_s, on_progress=on_progress)


def _compare(args: argparse.Namespace, scenario: Scenario, names: Sequence[str], console: Console) -> None:
    found: dict[str, tuple[list[PolicyResult], SimulationResult, float]] = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("bounds", total=1.0)
        bounds = cost_bounds(args.bound, scenario, lambda share: progress.update(bar, completed=share))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for name in names:
            bar = progress.add_task(name, total=scenario.span_s)
            started = time.perf_counter()
            result = run(name, scenario, _SAMPLE_S, lambda now, bar=bar: progress.update(bar, completed=now))  # type: ignore[misc]
            found[name] = (_results(name, result, bounds), result, time.perf_counter() - started)
    min_hours = sum(min_gpu_hours(model) for model in next(iter(found.values()))[1].models.values())
    has_deadlines = any(one.deadline_s < math.inf for traffic in scenario.traffic.values() for one in traffic.urgencies)
    may_leave = ", as requests with a deadline may leave" if has_deadlines else ""
    notes = [f"full batches without idle time: {table.hours_text(min_hours)} GPU-h{may_leave}"]
    notes += bounds.notes() + _time_notes(scenario)
    table.print_table(console, describe(scenario), [row for parts, _, _ in found.values() for row in parts], notes)
    if args.json:
        write_json(args.json, _as_json(args, scenario, found, min_hours))
    if args.plot:
        _plot(args.plot, scenario, {name: result for name, (_, result, _) in found.items()})


def _time_notes(scenario: Scenario) -> list[str]:
    """Return when the trace begins, if a setting depends on it."""
    if not any(scaling.schedule or scaling.recurring_load.learn for scaling in scenario.scalings.values()):
        return []
    begins = datetime.fromtimestamp(scenario.start_unix_s, UTC)
    return [f"the trace begins on {begins:%A, %Y-%m-%d %H:%M} UTC; --start sets another time"]


def _results(name: str, result: SimulationResult, bounds: CostBounds) -> list[PolicyResult]:
    parts = [part.with_bounds(*bounds.of_model(part.model)) for part in model_results(name, result)]
    if len(parts) == 1:
        return parts
    return [*parts, total_result(name, parts).with_bounds(*bounds.total())]


def _as_json(
    args: argparse.Namespace,
    scenario: Scenario,
    found: Mapping[str, tuple[list[PolicyResult], SimulationResult, float]],
    min_hours: float,
) -> dict[str, Any]:
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items() if value}
    return {
        "scenario": describe(scenario),
        "options": options,
        "least_gpu_hours": min_hours,
        "rows": [row.as_json() for parts, _, _ in found.values() for row in parts],
        "took_s": {name: round(elapsed_s, 2) for name, (_, _, elapsed_s) in found.items()},
        "samples": {name: samples_as_json(result) for name, (_, result, _) in found.items()},
    }


def _plot(file: Path, scenario: Scenario, runs: Mapping[str, SimulationResult]) -> None:
    model = next(iter(scenario.profiles))
    samples = {name: result.samples[model] for name, result in runs.items()}
    try:
        draw_plot(file, describe(scenario), samples, scenario.scalings[model].slo.max_wait_s)
    except (OSError, ValueError) as error:
        raise InvalidScenario(f"{file} cannot be written: {error}") from None
