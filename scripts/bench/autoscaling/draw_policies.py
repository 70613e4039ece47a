"""Draw a step of the load under four policies, and the costs of all policies on a recorded day.

    python -m scripts.bench.autoscaling.draw_policies --step docs/autoscaling_policies.png \
        --costs docs/autoscaling_costs.png

The costs are those of `scripts/bench/results/autoscaling.json`, which `compare_policies` writes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from configs.scaling import Scaling
from controller.simulator.cli import run
from controller.simulator.model_sim import WorkerProfile
from controller.simulator.scenarios import Scenario, Traffic

_POLICIES = ("slo_work", "queue_depth", "ongoing_requests", "hpa")
_RESULTS = Path("scripts/bench/results/autoscaling.json")
#: Seconds of the load, when it rises and falls, and its requests per second.
_SPAN_S, _RISE_S, _FALL_S = 3600.0, 900.0, 2100.0
_LOW, _HIGH = 0.25, 1.5


def step_of_load() -> Scenario:
    """Return an hour of Poisson arrivals of 4 s whose rate rises at once and falls at once."""
    rng, times, at = random.Random(3), [], 0.0
    while (at := at + rng.expovariate(_HIGH)) < _SPAN_S:
        if _RISE_S <= at < _FALL_S or rng.random() < _LOW / _HIGH:
            times.append(at)
    scaling = Scaling(min_workers=1, max_workers=12)
    traffic = Traffic(times, [4.0] * len(times))
    return Scenario({"m": traffic}, {"m": WorkerProfile("m")}, {"m": scaling}, 12, _SPAN_S)


def draw_step(file: Path) -> None:
    from matplotlib import pyplot

    given = step_of_load()
    figure, axes = pyplot.subplots(len(_POLICIES), 1, figsize=(9, 8), sharex=True, sharey=True, layout="constrained")
    busy = [(0, _LOW * 4), (_RISE_S, _LOW * 4), (_RISE_S, _HIGH * 4), (_FALL_S, _HIGH * 4), (_FALL_S, _LOW * 4)]
    busy.append((_SPAN_S, _LOW * 4))
    for axis, policy in zip(axes, _POLICIES, strict=True):
        model = run(policy, given).models["m"]
        history = [(0.0, 0, 1), *model.history, (_SPAN_S, model.starting, model.ready)]
        minutes = [at / 60 for at, _, _ in history]
        ready = [ready for _, _, ready in history]
        axis.fill_between(minutes, ready, step="post", color="tab:blue", alpha=0.4, label="ready")
        both = [starting + ready for _, starting, ready in history]
        axis.fill_between(minutes, ready, both, step="post", color="tab:orange", alpha=0.8, label="starting")
        axis.plot([at / 60 for at, _ in busy], [count for _, count in busy], "k:", label="busy on average")
        in_time = sum(wait <= model.profile.max_wait_s for wait in model.waits) / len(model.waits)
        hours = model.worker_s / 3600
        axis.set_title(f"{policy}: {100 * in_time:.1f} % within 10 s, {hours:.1f} GPU-h", fontsize=10, loc="left")
        axis.set_ylabel("workers")
    axes[0].legend(loc="upper right", ncols=3, fontsize=8)
    axes[-1].set(xlabel="minutes", xlim=(0, _SPAN_S / 60), ylim=(0, None))
    figure.savefig(file, dpi=100)


def draw_costs(file: Path) -> None:
    from matplotlib import pyplot

    scenarios = json.loads(_RESULTS.read_text())["scenarios"]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, name, title in zip(axes, ("s2", "s3"), ("one at a time", "batches of four"), strict=True):
        _draw_day(axis, scenarios[name])
        axis.set(title=f"a recorded day, {title}", xlabel="GPU-hours", ylabel="requests later than 10 s, %")
    figure.savefig(file, dpi=100)


def _draw_day(axis: Any, entry: dict[str, Any]) -> None:
    bound, best = entry["lower_bound"]["gpu_hours"], entry["best_known"]
    axis.axhline(1, color="k", linestyle=":", linewidth=0.8)
    axis.axvspan(0, bound, color="0.88")
    axis.text(bound - 2, 25, "no schedule with 1 %", rotation=90, fontsize=8, ha="right", va="bottom")
    points = [(best["gpu_hours"], 100 * (1 - best["in_slo"]), "best known")]
    points += [(row["gpu_hours"], 100 * (1 - row["in_slo"]), row["policy"]) for row in entry["rows"]]
    for hours, late, name in points:
        if name == "peak":
            continue
        color = {"slo_work": "tab:blue", "best known": "tab:green"}.get(name, "0.4")
        axis.plot(hours, late, "o", color=color, markersize=5)
        # Labels keep off the line at 1 %, and of two close points the one that is less late has its label above.
        is_close = any(abs(other - hours) < 10 and 1 < worse / late < 1.3 for other, worse, _ in points)
        offset = (5, -9) if late > 1 and not is_close else (5, 3)
        axis.annotate(name, (hours, late), offset, textcoords="offset points", fontsize=8, color=color)
    axis.set(xlim=(30, 150), ylim=(40, 0.1), yscale="log", yticks=[30, 10, 3, 1, 0.3, 0.1])
    axis.set_yticklabels(["30", "10", "3", "1", "0.3", "0.1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--costs", type=Path, required=True, metavar="FILE.png")
    args = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    draw_step(args.step)
    draw_costs(args.costs)


if __name__ == "__main__":
    main()
