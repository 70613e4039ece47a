"""How much faster is step-level batching than batches of whole requests, at the same load?

    python -m scripts.bench.experiments.step_level

Published (Lightning AI, February 2023): 3 to 12.8 % faster on an A10, 2 to 18.5 % on a T4, more with larger batches.
Here two simulated accelerators follow the step times of that article's A10. One server rebuilds its batch at every
step; the other waits 0.3 s for a batch and runs it to its end. Both get the same users at the same time: users who send
again at once, as load tests do, and users who pause for 10 s on average, as people do.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.bench.experiments.experiment import SPEED, STEPS, UserLoad, run_experiment, simulated_model
from scripts.bench.experiments.step_curves import A10
from scripts.harness.balancer import running

BATCH = 6
_WINDOW_S = 0.3
MODES: dict[str, dict[str, Any]] = {
    "step level": {"mode": "step"},
    "whole requests": {"mode": "grouped", "window_s": _WINDOW_S / SPEED},
}
USERS = (1, 2, 4, 6, 12)
LOADS = {
    "users send again at once": UserLoad(warm_up_s=24.0, seconds=100.0, pause_s=0.0),
    "users pause for 10 s": UserLoad(warm_up_s=24.0, seconds=100.0, pause_s=10.0),
}


def measure(console: Console) -> dict[str, Any]:
    """Return every load with the mean latencies of both servers."""
    with tempfile.TemporaryDirectory(prefix="muster-experiment-") as place, contextlib.ExitStack() as stack:
        urls = {
            mode: stack.enter_context(
                running(Path(place) / str(number), {"sim": simulated_model(A10, BATCH, batching=batching)})
            ).base_url
            for number, (mode, batching) in enumerate(MODES.items())
        }
        rows: list[dict[str, Any]] = []
        for name, load in LOADS.items():
            for users in USERS:
                rows.append({"load": name, "users": users} | asyncio.run(_compare(urls, load, users)))
                console.print(f"{name}, {users} users: {100 * rows[-1]['faster']:.1f} % faster", highlight=False)
    gains = {name: [row["faster"] for row in rows if row["load"] == name] for name in LOADS}
    summary = "; ".join(
        f"{name}: {100 * min(each):.1f} to {100 * max(each):.1f} % faster" for name, each in gains.items()
    )
    published = {"faster": {"A10": [0.03, 0.128], "T4": [0.02, 0.185]}}
    return {"summary": summary, "published": published, "curve": A10.name, "speed": SPEED, "steps": STEPS, "rows": rows}


async def _compare(urls: Mapping[str, str], load: UserLoad, users: int) -> dict[str, Any]:
    """Run the load on both servers at the same time. `faster` is the share of the mean latency that is saved."""
    found = dict(zip(urls, await asyncio.gather(*(load.run(url, users) for url in urls.values())), strict=True))
    step, whole = (found[mode]["mean_s"] for mode in MODES)
    return found | {"faster": 1 - step / whole}


def draw(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw the mean latencies, and the share that step-level batching saves."""
    left, right = axes
    for number, load in enumerate(LOADS):
        rows = [row for row in result["rows"] if row["load"] == load]
        users = [row["users"] for row in rows]
        for mode, style in zip(MODES, ("o-", "s--"), strict=True):
            left.plot(users, [row[mode]["mean_s"] for row in rows], style, color=f"C{number}", label=f"{mode}; {load}")
        right.plot(users, [100 * row["faster"] for row in rows], "o-", color=f"C{number}", label=load)
    low, high = (100 * each for each in result["published"]["faster"]["A10"])
    right.axhspan(low, high, color="grey", alpha=0.2, label="published, A10")
    left.set(xlabel="users", ylabel="mean latency, s")
    right.set(xlabel="users", ylabel="% less latency at step level")


def main() -> int:
    return run_experiment("step_level", __doc__ or "", measure, draw)


if __name__ == "__main__":
    sys.exit(main())
