"""`python -m controller tune`: search the policy settings that meet a goal with the fewest GPU-hours."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

from rich.console import Console
from rich.progress import Progress

from configs.cli import EXIT_USAGE
from configs.yaml_file import dump_yaml
from controller.simulator.cli import run
from controller.simulator.option_checks import TOO_LARGE, InvalidScenario
from controller.simulator.random_search import (
    AT_ONCE,
    ParameterRange,
    ParameterValues,
    SearchCandidate,
    search,
    search_space,
)
from controller.simulator.results import PolicyResult, model_results, total_result
from controller.simulator.scaling_fields import InvalidScaling, merge_fields, nested_fields, with_fields
from controller.simulator.scenario_options import describe, scenario_from
from controller.simulator.scenario_parser import make_parser
from controller.simulator.scenarios import Scenario, slice_traffic
from controller.simulator.table import hours_text

_DESCRIPTION = """\
Search policy settings on the first part of a trace, evaluate them on the rest, and print them as YAML.

    python -m controller tune --trace arrivals.csv --config my.yaml --goal 99 --within 10

Settings that suit one day may not suit the next: use several days, and prefer the defaults for a small gain.
"""
#: The result of settings that the configuration rejects.
_INVALID_RESULT = PolicyResult("", "", 0, 0, 0.0, 0.0, 0.0, 0.0, float("inf"), 0, 0, 0, 0.0)


def main(argv: Sequence[str]) -> int:
    """Search and print. Return 0 if the rest meets the goal, 1 if not, 2 for invalid options."""
    parser = make_parser("python -m controller tune", _DESCRIPTION)
    parser.add_argument("--policy", default="slo_work", help="policy to tune")
    parser.add_argument(
        "--goal", type=float, default=99.0, metavar="PERCENT", help="share of requests to serve in time"
    )
    parser.add_argument("--within", type=float, metavar="S", help="maximum wait of a request in time (slo.max_wait_s)")
    parser.add_argument("--tries", type=int, default=60, metavar="N", help="number of settings to try")
    parser.add_argument("--part", type=float, default=0.5, metavar="X", help="share of the trace to search on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="parallel processes")
    args = parser.parse_args(argv)
    console = Console(stderr=True)
    try:
        return _tune(args, scenario_from(args), console)
    except InvalidScenario as error:
        print(f"cannot tune: {error}", file=sys.stderr)
        return EXIT_USAGE
    except MemoryError:
        print(f"cannot tune: {args.trace} {TOO_LARGE}", file=sys.stderr)
        return EXIT_USAGE


def _tune(args: argparse.Namespace, scenario: Scenario, console: Console) -> int:
    _check(args)
    fixed_fields = {"policy": args.policy, "slo": {"percentile": args.goal} | _within(args)}
    try:
        scalings = {name: with_fields(scaling, fixed_fields) for name, scaling in scenario.scalings.items()}
    except InvalidScaling as error:
        raise InvalidScenario(str(error)) from None
    scenario = replace(scenario, scalings=scalings)
    first, rest = split_scenario(scenario, args.part)
    space = _space(args.policy, scenario)
    console.print(describe(first), highlight=False, markup=False)
    best = _search(args, first, space, console)
    default_result, tuned_result = (evaluate(rest, args.policy, values) for values in ({}, best.settings))
    _print_result(console, "searched", best.result)
    _print_result(console, "on the rest", tuned_result)
    _print_result(console, "on the rest, with the defaults", default_result)
    if tuned_result.in_slo < args.goal / 100:
        console.print(f"the goal of {args.goal:g} % is not met on the rest: do not use these settings")
    print(dump_yaml({"scaling": merge_fields(fixed_fields, nested_fields(best.settings))}), end="")
    return int(tuned_result.in_slo < args.goal / 100)


def _check(args: argparse.Namespace) -> None:
    """Raise `InvalidScenario` for an option out of its range."""
    for name, most in (("part", 1), ("goal", 100)):
        value = getattr(args, name)
        if not 0 < value < most:
            raise InvalidScenario(f"--{name} ({value:g}) must be between 0 and {most}")
    for name in ("tries", "jobs"):
        if getattr(args, name) < 1:
            raise InvalidScenario(f"--{name} ({getattr(args, name)}) must be at least 1")


def _within(args: argparse.Namespace) -> dict[str, float]:
    return {} if args.within is None else {"max_wait_s": args.within}


def _space(policy: str, scenario: Scenario) -> Mapping[str, ParameterRange]:
    """Return the search space, which is common to all models, by the batch size of the first."""
    name = next(iter(scenario.profiles))
    space = search_space(policy, scenario.scalings[name], scenario.profiles[name].batch)
    if not space:
        raise InvalidScenario(f"policy {policy} has no settings to search")
    return space


def split_scenario(scenario: Scenario, part: float) -> tuple[Scenario, Scenario]:
    """Split the scenario in time."""
    split_s = scenario.span_s * part
    first = {name: slice_traffic(traffic, 0.0, split_s) for name, traffic in scenario.traffic.items()}
    rest = {name: slice_traffic(traffic, split_s, float("inf")) for name, traffic in scenario.traffic.items()}
    if not all(any(traffic.times for traffic in half.values()) for half in (first, rest)):
        raise InvalidScenario("both parts of the trace must have requests; change --part")
    return (
        replace(scenario, traffic=first, span_s=split_s),
        replace(scenario, traffic=rest, span_s=scenario.span_s - split_s, start_unix_s=scenario.start_unix_s + split_s),
    )


def evaluate(scenario: Scenario, policy: str, settings: ParameterValues) -> PolicyResult:
    """Simulate the settings."""
    try:
        scalings = {name: with_fields(scaling, nested_fields(settings)) for name, scaling in scenario.scalings.items()}
    except InvalidScaling:
        return _INVALID_RESULT
    return total_result(policy, model_results(policy, run(policy, replace(scenario, scalings=scalings))))


def _search(
    args: argparse.Namespace, scenario: Scenario, space: Mapping[str, ParameterRange], console: Console
) -> SearchCandidate:
    with (
        ProcessPoolExecutor(min(args.jobs, AT_ONCE)) as pool,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("searching", total=args.tries)

        def evaluate_all(candidates: Sequence[ParameterValues]) -> list[PolicyResult]:
            tuned_result = list(pool.map(partial(evaluate, scenario, args.policy), candidates))
            progress.advance(bar, len(candidates))
            return tuned_result

        return search(space, args.goal / 100, args.tries, evaluate_all, seed=args.seed)


def _print_result(console: Console, label: str, result: PolicyResult) -> None:
    console.print(
        f"{label}: {100 * result.in_slo:.2f} % in time, {hours_text(result.gpu_hours)} GPU-h, "
        f"{result.cold_starts} starts",
        highlight=False,
    )
