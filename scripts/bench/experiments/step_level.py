"""How much faster is step-level batching than batches of whole requests, at the same load?

    python -m scripts.bench.experiments.step_level

Published (Lightning AI, February 2023): 3 to 12.8 % faster on an A10, 2 to 18.5 % on a T4, more with larger batches.
Here two simulated accelerators follow the step times of that article's A10, and then published times of an A100. One
server rebuilds its batch at every step; the other waits 0.3 s for a batch and runs it to its end. Both get the same
users at the same time: users who send again at once, as load tests do, and users who pause for 10 s on average, as
people do.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from scripts.bench.experiments.experiment import SPEED, STEPS, UserLoad, run_experiment, simulated_model
from scripts.bench.experiments.step_curves import A10, A100, PublishedCurve
from scripts.harness.balancer import running

_WINDOW_S = 0.3
MODES: dict[str, dict[str, Any]] = {
    "step level": {"mode": "step"},
    "whole requests": {"mode": "grouped", "window_s": _WINDOW_S / SPEED},
}


class Setting(NamedTuple):
    """An accelerator with its largest batch, and the users of its levels."""

    name: str
    curve: PublishedCurve
    batch: int
    pause_s: float
    users: tuple[int, ...]


SETTINGS = (
    Setting("A10, batches of 6, no pause", A10, 6, 0.0, (1, 2, 4, 6, 12)),
    Setting("A10, batches of 6, pause 10 s", A10, 6, 10.0, (1, 2, 4, 6, 12)),
    Setting("A100, batches of 12, pause 10 s", A100, 12, 10.0, (6, 12, 24)),
)


def measure(console: Console) -> dict[str, Any]:
    """Return every level with the mean latencies of both servers."""
    rows = [row for setting in SETTINGS for row in _rows(setting, console)]
    gains = {each.name: [row["faster"] for row in rows if row["setting"] == each.name] for each in SETTINGS}
    parts = [f"{name}: {100 * min(each):.1f} to {100 * max(each):.1f} % faster" for name, each in gains.items()]
    published = {"faster": {"A10": [0.03, 0.128], "T4": [0.02, 0.185]}}
    return {"summary": "; ".join(parts), "published": published, "speed": SPEED, "steps": STEPS, "rows": rows}


def _rows(setting: Setting, console: Console) -> Iterator[dict[str, Any]]:
    load = UserLoad(warm_up_s=24.0, seconds=96.0, pause_s=setting.pause_s)
    with tempfile.TemporaryDirectory(prefix="muster-experiment-") as place, contextlib.ExitStack() as stack:
        urls = {}
        for number, (mode, batching) in enumerate(MODES.items()):
            model = simulated_model(setting.curve, setting.batch, batching=batching)
            urls[mode] = stack.enter_context(running(Path(place) / str(number), {"sim": model})).base_url
        for users in setting.users:
            row: dict[str, Any] = {"setting": setting.name, "users": users} | asyncio.run(_compare(urls, load, users))
            console.print(f"{setting.name}, {users} users: {100 * row['faster']:.1f} % faster", highlight=False)
            yield row


async def _compare(urls: Mapping[str, str], load: UserLoad, users: int) -> dict[str, Any]:
    """Run the load on both servers at the same time. `faster` is the share of the mean latency that is saved."""
    found = dict(zip(urls, await asyncio.gather(*(load.run(url, users) for url in urls.values())), strict=True))
    step, whole = (found[mode]["mean_s"] for mode in MODES)
    return found | {"faster": 1 - step / whole}


def draw(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw the mean latencies, and the share that step-level batching saves."""
    left, right = axes
    for number, setting in enumerate(SETTINGS):
        rows = [row for row in result["rows"] if row["setting"] == setting.name]
        users = [row["users"] for row in rows]
        for mode, style in zip(MODES, ("o-", "s--"), strict=True):
            label = f"{setting.name}: {mode}"
            left.plot(users, [row[mode]["mean_s"] for row in rows], style, color=f"C{number}", label=label)
        right.plot(users, [100 * row["faster"] for row in rows], "o-", color=f"C{number}", label=setting.name)
    low, high = (100 * each for each in result["published"]["faster"]["A10"])
    right.axhspan(low, high, color="grey", alpha=0.2, label="published, A10")
    # Room for the legends above the lines.
    highest = max(row[mode]["mean_s"] for row in result["rows"] for mode in MODES)
    left.set(xlabel="users", ylabel="mean latency, s", ylim=(0, 1.6 * highest))
    most = 100 * max(*(row["faster"] for row in result["rows"]), high / 100)
    right.set(xlabel="users", ylabel="% less latency at step level", ylim=(None, 1.5 * most))


def main() -> int:
    return run_experiment("step_level", __doc__ or "", measure, draw)


if __name__ == "__main__":
    sys.exit(main())
