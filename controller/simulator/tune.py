"""`python -m controller tune`: the settings of a policy that hold a goal at the fewest GPU-hours, on a trace."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from configs.cli import EXIT_USAGE
from controller.simulator.cli import run
from controller.simulator.random_search import Range, Settings, Tried, ranges, search, tree
from controller.simulator.results import Row, rows, total
from controller.simulator.scenario_options import Refused, changed, cut, described, make_parser, scenario_from
from controller.simulator.scenarios import Scenario

_DESCRIPTION = """\
Search settings of a policy for a goal, on the first part of a trace; see how they do on the rest; print them as YAML.

    python -m controller tune --trace arrivals.csv --config my.yaml --goal 99 --within 10

What holds on one day may not on the next: give it several days, and prefer the defaults where it gains little.
"""
#: What a try is worth that the configuration refuses.
_REFUSED = Row("", "", 0, 0, 0.0, 0.0, 0.0, 0.0, float("inf"), 0, 0, 0, 0.0)


def main(argv: Sequence[str]) -> int:
    """Search and print. Returns the exit status: 0 the goal is held on the rest too, 1 it is not, 2 refused."""
    parser = make_parser("python -m controller tune", _DESCRIPTION)
    parser.add_argument("--policy", default="slo_work", help="whose settings to search")
    parser.add_argument("--goal", type=float, default=99.0, metavar="PERCENT", help="so many requests are in time")
    parser.add_argument("--within", type=float, metavar="S", help="in time means: waits no longer (slo.max_wait_s)")
    parser.add_argument("--tries", type=int, default=60, metavar="N", help="settings to try")
    parser.add_argument("--part", type=float, default=0.5, metavar="X", help="part of the trace to search on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    args = parser.parse_args(argv)
    console = Console(stderr=True)
    try:
        return _tune(args, scenario_from(args), console)
    except Refused as refusal:
        print(f"cannot tune: {refusal}", file=sys.stderr)
        return EXIT_USAGE


def _tune(args: argparse.Namespace, scenario: Scenario, console: Console) -> int:
    if not 0 < args.part < 1 or args.tries < 1 or not 0 < args.goal < 100:
        raise Refused("--part must lie between 0 and 1, --goal between 0 and 100, --tries be 1 or more")
    given = {"policy": args.policy, "slo": {"percentile": args.goal} | _within(args)}
    try:
        scalings = {name: changed(one, given) for name, one in scenario.scalings.items()}
    except ValidationError as error:
        raise Refused("; ".join(problem["msg"] for problem in error.errors())) from None
    scenario = replace(scenario, scalings=scalings)
    first, rest = halves(scenario, args.part)
    space = _space(args.policy, scenario)
    console.print(described(first), highlight=False)
    best = _search(args, first, space, console)
    usual, found = (evaluate(rest, args.policy, one) for one in ({}, best.settings))
    _say(console, "searched", best.row)
    _say(console, "on the rest", found)
    _say(console, "on the rest, with the defaults", usual)
    if found.in_slo < args.goal / 100:
        console.print(f"the goal of {args.goal:g} % is not held on the rest: do not rely on these settings")
    print(yaml.safe_dump({"scaling": _over(given, tree(best.settings))}, sort_keys=False), end="")
    return int(found.in_slo < args.goal / 100)


def _within(args: argparse.Namespace) -> dict[str, float]:
    return {} if args.within is None else {"max_wait_s": args.within}


def _over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, **over}


def _space(policy: str, scenario: Scenario) -> Mapping[str, Range]:
    """The same settings for every model: by the batch of the first."""
    name = next(iter(scenario.services))
    space = ranges(policy, scenario.scalings[name], scenario.services[name].batch)
    if not space:
        raise Refused(f"policy {policy} has nothing to search for")
    return space


def halves(scenario: Scenario, part: float) -> tuple[Scenario, Scenario]:
    """The scenario's first part, and the rest of it."""
    border = scenario.span_s * part
    first = {name: cut(traffic, 0.0, border) for name, traffic in scenario.traffic.items()}
    rest = {name: cut(traffic, border, float("inf")) for name, traffic in scenario.traffic.items()}
    if not any(one.times for one in first.values()) or not any(one.times for one in rest.values()):
        raise Refused("both parts of the trace must have requests; change --part")
    return (
        replace(scenario, traffic=first, span_s=border),
        replace(scenario, traffic=rest, span_s=scenario.span_s - border),
    )


def evaluate(scenario: Scenario, policy: str, settings: Settings) -> Row:
    """What the settings do."""
    try:
        scalings = {name: changed(one, tree(settings)) for name, one in scenario.scalings.items()}
    except ValidationError:
        return _REFUSED
    return total(policy, rows(policy, run(policy, replace(scenario, scalings=scalings))))


def _search(args: argparse.Namespace, scenario: Scenario, space: Mapping[str, Range], console: Console) -> Tried:
    with (
        ProcessPoolExecutor(max(args.jobs, 1)) as pool,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("searching", total=args.tries)

        def evaluated(candidates: Sequence[Settings]) -> list[Row]:
            found = list(pool.map(partial(evaluate, scenario, args.policy), candidates))
            progress.advance(bar, len(candidates))
            return found

        return search(space, args.goal / 100, args.tries, evaluated, seed=args.seed)


def _say(console: Console, what: str, row: Row) -> None:
    console.print(
        f"{what}: {100 * row.in_slo:.2f} % in time, {row.gpu_hours:.1f} GPU-h, {row.cold_starts} starts",
        highlight=False,
    )
