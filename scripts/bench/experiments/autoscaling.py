"""How many users do one worker and up to four workers hold, with autoscaling on?

    python -m scripts.bench.experiments.autoscaling

Published (Lightning AI, December 2022): 60 users with one server, 400 with four. Here each worker is a simulated
accelerator with the published step times of an A100 and batches of 12. The HTTP server, the balancer, the controller
and its decisions are real, with all times of the default settings divided by the speed. Each level of users begins with
a time in which the controller may start workers.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import msgspec
from rich.console import Console

from configs.paths import internal_token
from configs.scaling import Scaling
from scripts.bench.autoscaling.live_vs_simulated import settings
from scripts.bench.experiments.experiment import (
    SPEED,
    UserLoad,
    draw_held_users,
    run_experiment,
    search_held_users,
    simulated_model,
)
from scripts.bench.experiments.step_curves import A100
from scripts.harness.instance import Instance
from wire.scaling import MAX_DECISIONS, DecisionPage

FLEETS = {"one worker": 1, "up to four workers": 4}
LOAD = UserLoad(warm_up_s=120.0, seconds=120.0)
_FIRST_USERS = (56, 224)
_BATCH = 12
#: Seconds that a worker of the published accelerator would take to start.
_COLD_START_S = 20.0


def measure(console: Console) -> dict[str, Any]:
    """Return the users that each fleet holds, and what the controller decided."""
    with tempfile.TemporaryDirectory(prefix="muster-experiment-") as place, contextlib.ExitStack() as stack:
        fleets: dict[str, Instance] = {}
        for label, workers in FLEETS.items():
            fleets[label] = Instance(Path(place) / str(workers), _config(workers), threads=None)
            stack.callback(fleets[label].end)
            fleets[label].until(fleets[label].is_ready, "a ready server")
        urls = {label: fleet.url for label, fleet in fleets.items()}
        found = search_held_users(urls, LOAD, _FIRST_USERS, console)
        decisions = {label: _changes(fleet) for label, fleet in fleets.items()}
    one, four = found["held"].values()
    summary = f"users held: {one} by one worker, {four} by up to four, {four / max(one, 1):.1f} times as many"
    published = {"held": [60, 400]}
    return {"summary": summary, "published": published, "curve": A100.name, "decisions": decisions} | found


def _config(workers: int) -> dict[str, Any]:
    scaling = settings(SPEED, "slo_work", Scaling().interval_s, _COLD_START_S, workers)
    model = simulated_model(A100, _BATCH, scaling=scaling)
    model["sim"] |= {"load_s": _COLD_START_S / SPEED}
    return {"models": {"sim": model}, "workers": {}, "queue": {"deadline_slack": None}}


def _changes(fleet: Instance) -> list[dict[str, Any]]:
    """Return the decisions that changed the number of workers."""
    headers = {"authorization": f"Bearer {internal_token(fleet.folder)}"}
    answer = httpx.get(f"{fleet.url}/internal/decisions?limit={MAX_DECISIONS}", headers=headers, timeout=30)
    page = msgspec.json.decode(answer.raise_for_status().content, type=DecisionPage)
    return [
        {"from": each.provisioned, "to": each.desired, "reason": each.reason}
        for each in reversed(page.decisions)
        if each.desired != each.provisioned
    ]


def main() -> int:
    return run_experiment("autoscaling", __doc__ or "", measure, draw_held_users)


if __name__ == "__main__":
    sys.exit(main())
