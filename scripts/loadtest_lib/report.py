"""The whole report: what was asked, what was measured, and where."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from scripts.harness.load import machine
from scripts.loadtest_lib.html_report import duration
from scripts.loadtest_lib.plan import LoadPlan
from scripts.loadtest_lib.records import LoadSecond
from scripts.loadtest_lib.report_data import report_data
from scripts.loadtest_lib.sampler import ServerSampler

#: Options that say where files and servers are.
_PLACES = ("--html", "--json", "--key-file", "--admin-key-file", "--url", "--recording", "--config")


def full_report(
    argv: Sequence[str],
    options: argparse.Namespace,
    plan: LoadPlan,
    seconds: Mapping[int, LoadSecond],
    sampler: ServerSampler,
) -> dict[str, Any]:
    """Return the report as JSON."""
    ramp_s = plan.shape.ramp_s
    measured = f"Without the first {ramp_s:g} s, in which the load rises." if ramp_s else "Of the whole test."
    counted = "from when a request was due" if plan.is_open else "from when a request was sent"
    return {
        "command": shlex.join(["scripts/loadtest.py", *public_arguments(argv)]),
        "description": describe(plan, started_here=options.url is None and options.config is None),
        "machine": machine(),
        "options": {
            "shape": plan.shape.kind,
            "seconds": plan.shape.seconds,
            "ramp_s": ramp_s,
            "users": plan.users,
            "rate": plan.rate,
            "pause_s": plan.pause_s,
            "max_in_flight": plan.max_in_flight,
            "open_loop": plan.is_open,
            "mix": plan.weights,
            "processes": plan.processes,
            "models": [model.name for model in plan.models],
        },
        "latency_note": f"Latencies are of answered requests, {counted}. {measured}",
        "sampling_problem": sampler.problem,
    } | report_data(seconds, sampler.samples, sampler.decisions, ramp_s)


def describe(plan: LoadPlan, *, started_here: bool) -> str:
    """Return the test in one sentence."""
    if plan.recorded:
        load = f"{len(plan.recorded):,} recorded requests"
    elif plan.rate:
        load = f"open loop, up to {plan.rate:g} requests/s"
    else:
        load = f"closed loop, up to {plan.users:,} users who pause {plan.pause_s:g} s"
    where = "simulated accelerators" if started_here else "the given server"
    return f"{plan.shape.kind.capitalize()}: {load}, {plan.shape.seconds:g} s, on {where}."


def public_arguments(argv: Sequence[str]) -> list[str]:
    """Return the arguments without folders and addresses of this machine."""
    shown: list[str] = []
    for index, argument in enumerate(argv):
        name, is_joined, value = argument.partition("=")
        if name in _PLACES and is_joined:
            shown.append(f"{name}={_public(name, value)}")
        elif index and argv[index - 1] in _PLACES:
            shown.append(_public(argv[index - 1], argument))
        else:
            shown.append(argument)
    return shown


def _public(option: str, value: str) -> str:
    return "URL" if option == "--url" else Path(value).name


def summary_table(data: Mapping[str, Any]) -> Table:
    """Return the rows by kind of request for the terminal."""
    table = Table("requests", "answered", "429", "errors", "p50", "p95", "p99", title=data["description"])
    for row in data["kinds"]:
        cells = [row["name"], *(str(row[name]) for name in ("ok", "refused", "errors"))]
        table.add_row(*cells, *(duration(row[name]) for name in ("p50_ms", "p95_ms", "p99_ms")))
    return table
