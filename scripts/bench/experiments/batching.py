"""How many users does one worker hold with one request at a time, and with batches of 12?

    python -m scripts.bench.experiments.batching

Published (Lightning AI, December 2022): about 30 and 60 users, and 50 % more throughput. Here a simulated accelerator
follows the published step times of an A100; the HTTP server, the balancer and the worker are real. Users pause for 30 s
on average. They are held while p95 is within 15 s, without an error.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.bench.experiments.experiment import (
    UserLoad,
    draw_held_users,
    run_experiment,
    search_held_users,
    simulated_model,
)
from scripts.bench.experiments.step_curves import A100
from scripts.harness.balancer import running

BATCHES = {"one at a time": 1, "batches of 12": 12}
LOAD = UserLoad(warm_up_s=40.0, seconds=160.0)
_FIRST_USERS = (24, 48)


def measure(console: Console) -> dict[str, Any]:
    """Return the users that are held with each batch."""
    with tempfile.TemporaryDirectory(prefix="muster-experiment-") as place, contextlib.ExitStack() as stack:
        urls = {
            label: stack.enter_context(
                running(Path(place) / str(batch), {"sim": simulated_model(A100, batch)})
            ).base_url
            for label, batch in BATCHES.items()
        }
        found = search_held_users(urls, LOAD, _FIRST_USERS, console)
    (one, twelve), (slow, fast) = found["held"].values(), found["images_per_s"].values()
    gain = fast / slow if slow else float("nan")
    summary = f"users held: {one} one at a time, {twelve} with batches of 12; throughput {gain:.2f}x"
    published = {"held": [30, 60], "throughput_gain": 1.5}
    return {"summary": summary, "published": published, "curve": A100.name, "throughput_gain": gain} | found


def main() -> int:
    return run_experiment("batching", __doc__ or "", measure, draw_held_users)


if __name__ == "__main__":
    sys.exit(main())
