"""Plot of a simulation: arrivals, workers and the oldest queue wait."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.simulator.simulator import ModelSample

#: Endings of files that can be written.
PLOT_FORMATS = (".png", ".svg", ".pdf")


def draw_plot(file: Path, title: str, runs: Mapping[str, Sequence[ModelSample]], max_wait_s: float) -> None:
    """Draw arrivals, and the workers and oldest wait of each policy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1 + 2 * len(runs), 1, figsize=(12, 2.2 + 3.4 * len(runs)), sharex=True, squeeze=False, layout="constrained"
    )
    panels = [row[0] for row in axes]
    _arrivals(panels[0], next(iter(runs.values())))
    for number, (policy, samples) in enumerate(runs.items()):
        _workers(panels[1 + 2 * number], policy, samples)
        _waits(panels[2 + 2 * number], samples, max_wait_s)
    panels[-1].set_xlabel("hours")
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _arrivals(axis: Any, samples: Sequence[ModelSample]) -> None:
    hours = [sample.at / 3600 for sample in samples[1:]]
    pairs = itertools.pairwise(samples)
    axis.plot(hours, [(b.arrived - a.arrived) / (b.at - a.at) for a, b in pairs], color="k", linewidth=0.7)
    axis.set_ylabel("requests/s")
    axis.set_ylim(bottom=0)


def _workers(axis: Any, policy: str, samples: Sequence[ModelSample]) -> None:
    hours = [sample.at / 3600 for sample in samples]
    ready = [sample.ready for sample in samples]
    axis.fill_between(hours, ready, step="post", color="tab:blue", alpha=0.35, label="ready")
    provisioned = [sample.ready + sample.starting for sample in samples]
    axis.fill_between(hours, ready, provisioned, step="post", color="tab:orange", alpha=0.7, label="starting")
    axis.step(hours, [sample.desired for sample in samples], where="post", color="k", linewidth=0.7, label="desired")
    axis.set_ylabel(f"{policy}\nworkers")
    axis.legend(loc="upper left", fontsize=8)


def _waits(axis: Any, samples: Sequence[ModelSample], max_wait_s: float) -> None:
    hours = [sample.at / 3600 for sample in samples]
    axis.plot(hours, [sample.oldest_wait_s for sample in samples], color="tab:red", linewidth=0.8)
    axis.axhline(max_wait_s, color="k", linestyle=":", linewidth=0.8)
    axis.set_ylabel("oldest wait, s")
    axis.set_ylim(bottom=0)
