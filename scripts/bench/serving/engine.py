"""Compares the engine to the device's limit, and step batching to calls of the pipeline.

    python -m scripts.bench.serving.engine --family sd15 --size 512 --json results.json --plot results.png

One process measures in one run:

1. The limit: the denoiser's forward pass alone, by batch size.
2. The engine's step, the step loop around it, and the samplers alone.
3. Complete requests through the step loop, from arrival to encoded image. The baselines are `pipe()`, one request at a
time, and `pipe([...])` with request batches. A request batch has equal step counts and at most the best batch size. The
loads are closed-loop users, and open-loop arrivals at shares of what request batches sustain.

Weights are random but of the published size; nothing is downloaded. All servers get the same requests at the same
times. Compare the ratios within a round. Ctrl-C prints the measurements so far. Without a GPU, these are CPU numbers of
the built-in model on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from rich.progress import Progress

from scripts.bench.serving.forward_pass import StepTiming, clock_of
from scripts.bench.serving.load_generator import Load, LoadResult, run
from scripts.bench.serving.overheads import measure_loop, sampler_costs
from scripts.bench.serving.plots import draw_figures
from scripts.bench.serving.random_weight_models import parameters
from scripts.bench.serving.report import OURS, Rounds, condense, limit, of_limit, plain, tables
from scripts.bench.serving.servers import Server
from scripts.bench.serving.setup import (
    USUAL,
    BenchSetup,
    PipelineTiming,
    best_ways,
    calls,
    difference,
    set_up,
)
from scripts.harness.load import machine
from worker.batch_size import BUCKETS

#: The batch size of the overhead measurements.
_BATCH = 12
_WAYS = "variants of pipe(), of which each baseline uses the best: 'as it is' or compiled, 'regional' or 'full'"


def _parser() -> argparse.ArgumentParser:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(USUAL), default="sd15" if cuda else "digits")
    parser.add_argument("--tiny", action="store_true", help="small parts, only to try the program")
    parser.add_argument("--device", default="cuda:0" if cuda else "cpu")
    parser.add_argument("--size", type=int, help="side of the image in pixels; default: the family's usual one")
    parser.add_argument("--steps", default="25", help="steps of each request: a number, or a range such as 10-50")
    parser.add_argument("--compile", choices=("off", "regional", "full", "graphs"), default="off", help="of the engine")
    parser.add_argument("--baseline", default="as it is,full" if cuda else "as it is", help=_WAYS)
    parser.add_argument("--max-batch", type=int, help="of the engine; default: measured, as a worker does")
    parser.add_argument("--min-gain", type=float, default=0.05, help="gain in images/s that a larger batch must bring")
    parser.add_argument("--window", type=float, default=0.02, help="seconds that a whole batch waits for more requests")
    parser.add_argument("--users", help="numbers of users; default: 1, a full batch, and three of them")
    parser.add_argument("--loads", default="50,80,95", help="%% of what whole batches sustain")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of one measurement")
    parser.add_argument("--lead", type=float, help="seconds before it that do not count; default: a third of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for measuring a curve over batches")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--plot", type=Path, help="write the plot here")
    return parser


def main() -> None:
    args = _parser().parse_args()
    args.lead = args.seconds / 3 if args.lead is None else args.lead
    console = Console(width=170)
    result: dict[str, Any] = {"command": _command(sys.argv[1:]), "machine": machine(), "samplers": []}
    result["load_average_before"] = os.getloadavg()
    rounds: Rounds = {}
    points: list[StepTiming] = []
    setups: list[BenchSetup] = []
    with contextlib.suppress(KeyboardInterrupt), Progress(console=console) as progress:
        bar = progress.add_task("building the pipeline, measuring batches", total=None)
        setup = set_up(args)
        setups.append(setup)
        result |= _description(args, setup)
        progress.update(bar, description="steps and forward passes")
        points += setup.bench.points(setup.base, BUCKETS, args.budget)
        progress.update(bar, description="loop and samplers")
        result |= _overheads(setup)
        progress.update(bar, description="calls of the pipeline")
        found = calls(setup, args.baseline.split(","), args.budget)
        single, request_batching = best_ways(found, args.min_gain)
        result |= _baselines(found, single, request_batching, args.min_gain)
        _measure(args, setup, single, request_batching, rounds, progress)
    for setup in setups:  # empty if interrupted earlier
        result |= {
            "engine_cap_after": setup.cap,
            "engine_curves_after": msgspec.to_builtins(setup.sizer.curves(time.monotonic())),
        }
    _finish(args, result, points, rounds, console)


def _command(options: Sequence[str]) -> str:
    """Return the command that repeats this measurement, without its output files."""
    files = {
        place + offset for place, option in enumerate(options) if option in ("--json", "--plot") for offset in (0, 1)
    }
    output = [option for place, option in enumerate(options) if place not in files]
    return shlex.join(["python", "-m", "scripts.bench.serving.engine", *output])


def _description(args: argparse.Namespace, setup: BenchSetup) -> dict[str, Any]:
    where = machine()["gpu"] if setup.bench.device.type == "cuda" else "CPU numbers, one core"
    what = f"{args.family}{' (tiny)' if args.tiny else ''} {setup.base.width}x{setup.base.height}"
    return {
        "where": f"{what}, {args.steps} steps, {setup.bench.engine.info().dtype}, {where}",
        "parameters": parameters(setup.bench.pipe),
        "notes": "random weights; text encoders of true width, T5 with 2 of 24 layers" * (args.family != "digits"),
        "fingerprint": setup.bench.engine.fingerprint(),
        "guidance_scale": setup.base.guidance_scale,
        "mean_steps": setup.steps.mean,
        "engine_cap": setup.cap,
        "largest_pixel_difference_from_pipeline": difference(setup),
    }


def _overheads(setup: BenchSetup) -> dict[str, Any]:
    bench, base = setup.bench, setup.base
    costs = list(sampler_costs(bench.pipe, bench.call(base, 1).sample, base.steps))
    looped = measure_loop(bench.engine, setup.model, base, min(_BATCH, setup.cap), clock_of(bench.device))
    return {"samplers": plain(costs), "loop": plain(looped) | {"loop_share": looped.loop_share}}


def _baselines(
    found: Sequence[PipelineTiming], single: PipelineTiming, request_batching: PipelineTiming, min_gain: float
) -> dict[str, Any]:
    return {
        "pipeline_calls": [plain({"way": one.way, "seconds": one.seconds}) for one in found],
        "one_at_a_time": {"way": single.way},
        "whole_batches": {"way": request_batching.way, "cap": request_batching.cap(min_gain)},
    }


def _measure(
    args: argparse.Namespace,
    setup: BenchSetup,
    single: PipelineTiming,
    request_batching: PipelineTiming,
    rounds: Rounds,
    progress: Progress,
) -> None:
    """Run all servers under all loads; the order of servers rotates by round. Results are added to `rounds`."""
    servers = setup.servers(single, request_batching, args.window)
    cap = max(setup.cap, request_batching.cap(args.min_gain))
    users = [int(count) for count in args.users.split(",")] if args.users else [1, cap, 3 * cap]
    shares = [float(share) for share in args.loads.split(",") if share]
    [bar] = progress.task_ids
    progress.update(bar, description="what whole batches sustain")
    sustained = run(servers[-1], _closed(args, setup, max(users), "calibration")).images_per_s
    keeps_up = 1 / single.seconds[1]
    progress.update(bar, total=args.rounds * (len(users) + len(shares)) * len(servers))
    for number in range(args.rounds):
        order = servers[number % len(servers) :] + servers[: number % len(servers)]
        loads = [_closed(args, setup, count, f"round {number}") for count in users]
        loads += [_open(args, setup, share, sustained * share / 100, f"round {number}") for share in shares]
        for load in loads:
            results: dict[str, list[LoadResult]] = rounds.setdefault(load.name, {server.name: [] for server in servers})
            for server in order:
                progress.update(bar, description=f"round {number + 1}: {load.name}, {server.name}")
                if not _cannot_keep_up(server, load, keeps_up):
                    results[server.name].append(run(server, load))
                progress.advance(bar)


def _cannot_keep_up(server: Server, load: Load, keeps_up: float) -> bool:
    return server.name == "one at a time" and load.rate >= keeps_up


def _closed(args: argparse.Namespace, setup: BenchSetup, users: int, trace: str) -> Load:
    name = f"{users} user{'s' * (users > 1)}"
    return Load(name, setup.base, setup.steps, args.seconds, args.lead, f"{trace}, {name}", users=users)


def _open(args: argparse.Namespace, setup: BenchSetup, share: float, rate: float, trace: str) -> Load:
    name = f"{share:g} % load"
    return Load(name, setup.base, setup.steps, args.seconds, args.lead, f"{trace}, {name}", rate=rate)


def _finish(
    args: argparse.Namespace, result: dict[str, Any], points: Sequence[StepTiming], rounds: Rounds, console: Console
) -> None:
    """Print and write the results."""
    rows = condense(rounds)
    if points:
        best, max_rate = limit(points)
        result["limit"] = {
            "batch": best.batch,
            "row_steps_per_s": max_rate,
            "images_per_s": max_rate / result["mean_steps"],
        }
        result["share_of_limit"] = of_limit(rows, max_rate)
    for table in tables({"pipeline_calls": []} | result, points, rows):
        console.print(table)
    for key in ("limit", "share_of_limit", "loop", "engine_cap", "engine_cap_after", "whole_batches", "one_at_a_time"):
        console.print(f"{key}: {plain(result.get(key))}")
    result |= {"points": list(points), "rows": rows, "load_average_after": os.getloadavg()}
    if args.json:
        args.json.write_text(json.dumps(plain(result), indent=1) + "\n")
    if args.plot and points:
        draw_figures(plain(result), args.plot, OURS)


if __name__ == "__main__":
    main()
