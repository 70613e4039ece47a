"""Step batching against single requests and request batches, through the complete server.

    python -m scripts.bench.serving.step_batching --rounds 3 --json results.json --plot results.png

Three servers of one worker each run in parallel. Closed-loop users send requests to each server in turn, round after
round, so that noise affects all of them equally. Compare the ratios within a round. Without a GPU, these are CPU
numbers of the small built-in model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scripts.harness.instance import serving
from scripts.harness.load import RequestTemplate, closed_loop, machine

MODES: dict[str, dict[str, Any]] = {
    "step batching": {"max_batch_size": 12},
    "one at a time": {"max_batch_size": 1},
    "whole batches of 12": {"max_batch_size": 12, "batching": {"mode": "grouped", "window_s": 0.3}},
}
BODY = {"model": "digits", "prompt": "a handwritten seven"}
Rounds = dict[str, dict[int, list[dict[str, float | int]]]]


def config(mode: str) -> dict[str, Any]:
    """Return a configuration of one worker in the given mode, with an unbounded queue."""
    scaling = {"min_workers": 1, "max_workers": 1}
    limits = {"min_side": 32, "max_steps": 150}
    defaults = {"size": "64x64", "steps": 20, "guidance_scale": 3.0, "scheduler": "ddim"}
    model = {"path": "builtin:digits", "defaults": defaults, "limits": limits, "scaling": scaling}
    return {"models": {"digits": model | MODES[mode]}}


def measure(args: argparse.Namespace, users: list[int]) -> Rounds:
    """Measure every mode at every number of users, `rounds` times, interleaved."""
    rounds: Rounds = {mode: {count: [] for count in users} for mode in MODES}
    low, _, high = args.steps.partition("-")
    request = RequestTemplate(BODY, (int(low), int(high or low)))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack, Progress() as progress:
        bar = progress.add_task("starting three servers", total=args.rounds * len(users) * len(MODES))
        urls = {mode: stack.enter_context(serving(Path(folder) / str(i), config(mode))) for i, mode in enumerate(MODES)}
        for url in urls.values():
            asyncio.run(closed_loop(url, 12, 2.0, request))  # warm up
        for number in range(args.rounds):
            for count in users:
                for mode, url in urls.items():
                    progress.update(bar, description=f"round {number + 1}: {count} users, {mode}")
                    results = asyncio.run(closed_loop(url, count, args.seconds, request))
                    rounds[mode][count].append(results.summary())
                    progress.advance(bar)
    return rounds


def condense(rounds: Rounds) -> list[dict[str, Any]]:
    """Return by mode and users: median, spread, and the ratio to other modes within each round."""
    rows = []
    for mode, by_users in rounds.items():
        for users, results in by_users.items():
            row: dict[str, Any] = {"mode": mode, "users": users}
            for key in ("images_per_s", "p50_ms", "p99_ms"):
                values = [float(one[key]) for one in results]
                row[key] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
                ours = [float(one[key]) for one in rounds["step batching"][users]]
                ratios = [own / other for own, other in zip(ours, values, strict=True)]
                row[f"step_batching_over_this_{key}"] = {
                    "median": statistics.median(ratios),
                    "min": min(ratios),
                    "max": max(ratios),
                }
            row["errors"] = sum(int(one["errors"]) for one in results)
            rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="closed-loop users; median (min to max) over rounds; ratio = step batching / this, same round")
    for column in ("users", "mode", "images/s", "p50 ms", "p99 ms", "images/s ratio", "p50 ratio", "p99 ratio"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for row in sorted(rows, key=lambda row: (row["users"], list(MODES).index(row["mode"]))):
        cells = [str(row["users"]), row["mode"]]
        for key in ("images_per_s", "p50_ms", "p99_ms"):
            cell, digits = row[key], 1 if key == "images_per_s" else 0
            cells.append(f"{cell['median']:.{digits}f} ({cell['min']:.{digits}f} to {cell['max']:.{digits}f})")
        ratios = (row[f"step_batching_over_this_{key}"] for key in ("images_per_s", "p50_ms", "p99_ms"))
        cells += [f"{ratio['median']:.2f}" for ratio in ratios]
        table.add_row(*cells)
    Console(width=160).print(table)


def plot(rows: list[dict[str, Any]], file: Path, title: str) -> None:
    """Plot throughput and latency by users, one line per mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    for axis, (key, label) in zip(
        axes, [("images_per_s", "images/s"), ("p50_ms", "p50 latency, ms"), ("p99_ms", "p99 latency, ms")], strict=True
    ):
        for mode in MODES:
            own = sorted((row for row in rows if row["mode"] == mode), key=lambda row: row["users"])
            axis.errorbar(
                [row["users"] for row in own],
                [row[key]["median"] for row in own],
                yerr=[
                    [row[key]["median"] - row[key]["min"] for row in own],
                    [row[key]["max"] - row[key]["median"] for row in own],
                ],
                label=mode,
                marker="o",
                capsize=2,
            )
        axis.set(xlabel="users", ylabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend()
    canvas.suptitle(title)
    canvas.tight_layout()
    canvas.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="1,4,12,24,48", help="numbers of users, comma-separated")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", default="20", help="steps of each request: a number, or a range such as 10-40")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--plot", type=Path, help="draw them here")
    args = parser.parse_args()
    users = [int(count) for count in args.users.split(",")]
    rows = condense(measure(args, users))
    show(rows)
    command = f"python -m scripts.bench.serving.step_batching --users {args.users} --seconds {args.seconds:g}"
    command += f" --rounds {args.rounds} --steps {args.steps}"
    result: dict[str, Any] = {"command": command, "machine": machine(), "rows": rows}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.plot:
        where = result["machine"]["gpu"] if result["machine"]["gpu"] != "none" else "CPU, one worker"
        plot(rows, args.plot, f"built-in model, {args.steps} steps, {where}")


if __name__ == "__main__":
    main()
