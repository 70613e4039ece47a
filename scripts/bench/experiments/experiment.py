"""What the experiments share: accelerated simulated models, users, results and pictures."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.bench.experiments.held_users import HeldUsers, find_held_users
from scripts.bench.experiments.step_curves import PublishedCurve
from scripts.harness.load import RequestTemplate, closed_loop, machine
from scripts.harness.processes import ROOT

RESULTS, DOCS = ROOT / "scripts" / "bench" / "results", ROOT / "docs"
#: The simulated accelerators and the users are this much faster than the published ones. All seconds of results are of
#: the published accelerator.
SPEED = 8.0
STEPS = 30
#: Of a user between an answer and the next request, on average.
PAUSE_S = 30.0
#: Users are held while 95 of 100 requests are answered within it.
BOUND_S = 15.0
#: Pixels do not matter to a simulated accelerator: small images keep the machine free.
REQUEST = RequestTemplate({"prompt": "a lighthouse in a storm", "num_inference_steps": STEPS})


def simulated_model(curve: PublishedCurve, batch: int, workers: int = 1, **options: Any) -> dict[str, Any]:
    """Return a model on simulated accelerators of a published curve, `SPEED` times as fast."""
    model = {
        "engine": "sim",
        "max_batch_size": batch,
        "defaults": {"size": "64x64", "steps": STEPS, "guidance_scale": 7.5, "scheduler": "ddim"},
        "limits": {"min_side": 32, "max_steps": 200},
        "sim": curve.sim(SPEED) | {"asynchronous": True, "load_s": 0.0},
        "scaling": {"min_workers": workers, "max_workers": workers},
    }
    return model | options


@dataclass(frozen=True)
class UserLoad:
    """Closed-loop users, in seconds of the published accelerator."""

    warm_up_s: float
    seconds: float
    pause_s: float = PAUSE_S

    async def run(self, url: str, users: int) -> dict[str, Any]:
        """Return what these users observed."""
        times = {"pause_s": self.pause_s / SPEED, "warm_up_s": self.warm_up_s / SPEED}
        found = (await closed_loop(url, users, self.seconds / SPEED, REQUEST, **times)).summary()
        seconds = {name.replace("_ms", "_s"): SPEED * found[name] / 1000 for name in found if name.endswith("_ms")}
        rate = {"images_per_s": found["images_per_s"] / SPEED}
        return {"answered": found["images"], "errors": found["errors"]} | rate | seconds


def search_held_users(
    urls: Mapping[str, str], load: UserLoad, first_users: Sequence[int], console: Console
) -> dict[str, Any]:
    """Search the users that each server holds, all at the same time, so that noise affects all of them.

    The search begins at `first_users` of each server.

    Returns the searches, the held users, and the images per second while they were held, each by the server's label.
    """

    async def search(label: str, url: str, first: int) -> HeldUsers:
        async def measure(users: int) -> dict[str, Any]:
            level = await load.run(url, users)
            console.print(f"{label}: {users} users, p95 {level['p95_s']:.1f} s, {level['errors']} errors")
            return level

        return await find_held_users(measure, BOUND_S, first)

    async def search_all() -> list[HeldUsers]:
        return list(await asyncio.gather(*map(search, urls, urls.values(), first_users)))

    found = dict(zip(urls, asyncio.run(search_all()), strict=True))
    return {
        "speed": SPEED,
        "steps": STEPS,
        "pause_s": load.pause_s,
        "bound_s": BOUND_S,
        "held": {label: each.held for label, each in found.items()},
        "images_per_s": {
            label: max((level["images_per_s"] for level in each.levels if level["held"]), default=0.0)
            for label, each in found.items()
        },
        "searches": {label: each._asdict() for label, each in found.items()},
    }


def run_experiment(name: str, description: str, measure: Callable[[Console], dict[str, Any]], draw: Any) -> int:
    """Run the command of an experiment. Returns the exit status 0."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_outputs(parser, name)
    args, console = parser.parse_args(), Console()
    write_result(name, args, draw, console, lambda: measure(console))
    return 0


def add_outputs(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the options for the files that an experiment writes."""
    parser.add_argument("--json", type=Path, default=RESULTS / f"experiment_{name}.json", help="the results")
    parser.add_argument("--plot", type=Path, default=DOCS / f"experiment_{name}.png", help="their picture")


def write_result(
    name: str, args: argparse.Namespace, draw: Any, console: Console, measure: Callable[[], dict[str, Any]]
) -> None:
    """Measure, and write the results and their picture."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on the way out
    started_at = time.monotonic()
    result = {"command": f"python -m scripts.bench.experiments.{name}", "machine": machine()} | measure()
    result["took_s"] = round(time.monotonic() - started_at)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    draw_picture(args.plot, result, draw)
    console.print(f"{result['summary']} ({result['took_s']} s)", highlight=False)


def draw_picture(file: Path, result: Mapping[str, Any], draw: Any) -> None:
    """Let `draw` fill two axes side by side, and write them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.9))
    draw(axes, result)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def draw_held_users(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw p95 and throughput by users, a line for each configuration."""
    left, right = axes
    for number, (label, search) in enumerate(result["searches"].items()):
        levels = search["levels"]
        users, colour = [level["users"] for level in levels], f"C{number}"
        left.plot(users, [level["p95_s"] for level in levels], "o-", color=colour, label=label)
        left.axvline(search["held"], color=colour, linestyle=":", linewidth=1)
        right.plot(users, [level["images_per_s"] for level in levels], "o-", color=colour, label=label)
    left.axhline(result["bound_s"], color="black", linewidth=0.8, label=f"bound {result['bound_s']:g} s")
    left.set(xlabel="users", ylabel="p95 of the latency, s")
    left.set_ylim(0, 3 * result["bound_s"])
    right.set(xlabel="users", ylabel="images/s", ylim=(0, None))
