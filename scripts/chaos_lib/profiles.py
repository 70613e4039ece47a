"""The configurations of chaos runs: the built-in model, simulated workers, a user's engine, and several machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loadbalancer.access.api_keys import ApiKey
from scripts.chaos_lib.fault_plan import LoadShape
from scripts.harness.processes import ROOT

#: API keys by name, without their hashes. The weights are 4, 2 and 1; the last key has limits.
OWNERS: Mapping[str, ApiKey] = {
    "alice": ApiKey("0" * 64, weight=4.0),
    "bob": ApiKey("0" * 64, weight=2.0),
    "carol": ApiKey("0" * 64, weight=1.0, max_concurrent=12, requests_per_minute=1200),
}
#: Time limits of a request, sent with it, and of a job, from the configuration.
TIMEOUT_S, JOB_TIMEOUT_S = 60.0, 150.0
#: Short enough to expire within a run, long enough for a busy machine.
_WORKER_TIMEOUTS = {
    "heartbeat_s": 0.5,
    "lost_after_s": 3.0,
    "stuck_min_s": 10.0,
    "drain_timeout_s": 10.0,
    "orphan_after_s": 30.0,
}


#: What clients ask for.
Kind = Literal["image", "call", "text"]


@dataclass(frozen=True)
class Profile:
    """A model, its workers and its load."""

    name: str
    title: str
    model: Mapping[str, Any]
    load: LoadShape
    kind: Kind = "image"
    #: Machines with agents, with four simulated GPUs each. The server's own machine has two.
    machines: int = 0

    def config(self) -> dict[str, Any]:
        """Return the configuration of the server."""
        simulated = {"simulated": [{"memory": "24GiB", "count": 2}]} if self.machines else {}
        return {
            "models": {self.name: dict(self.model)},
            "workers": _WORKER_TIMEOUTS,
            "devices": {"use": "cpu", "cpu_slots": 2} | simulated,
            "jobs": {"timeout_s": JOB_TIMEOUT_S, "checkpoint_every_s": 1.0},
        }


#: The engine of the calls: a sampler in steps whose results follow from the seed.
SAMPLER = ROOT / "examples" / "langevin" / "engine.py"
_DEFAULTS = {"size": "64x64", "guidance_scale": 3.0, "scheduler": "ddim"}

DIGITS = Profile(
    "digits",
    "built-in model, 2 workers",
    {
        "path": "builtin:digits",
        "defaults": _DEFAULTS | {"steps": 20},
        "limits": {"min_side": 32},
        "warm_up": {"measure_s": 2.0},
        "batching": {"checkpoint_every": 5},
        "scaling": {"min_workers": 2, "max_workers": 2},
    },
    LoadShape(
        peak_rps=2.0,
        base_rps=0.3,
        steps=(10, 40),
        sizes=("64x64",),
        max_images=2,
        seed_count=8,
        reproducible=0.3,
        fault_interval_s=9.0,
        max_pause_s=6.0,
    ),
)
SIM = Profile(
    "sim",
    "simulated accelerators, 2 to 12 workers",
    {
        "engine": "sim",
        "max_batch_size": 4,
        "defaults": _DEFAULTS | {"steps": 20},
        "limits": {"max_steps": 150, "max_pixels": 65536, "min_side": 32},
        "sim": {"t0_s": 0.06, "t1_s": 0.005, "load_s": 0.2},
        "batching": {"checkpoint_every": 5},
        "scaling": {
            "min_workers": 2,
            "max_workers": 12,
            "interval_s": 1.0,
            "policy": "queue_depth",
            "scale_up_at": 3.0,
            "scale_down_at": 1.0,
            "scale_down_hold_s": 3.0,
            "scale_down_cooldown_s": 1.0,
        },
    },
    LoadShape(
        peak_rps=7.0,
        base_rps=0.5,
        steps=(8, 20, 40, 60),
        sizes=("64x64", "128x64"),
        max_images=4,
        seed_count=1_000_000,
        reproducible=0.1,
        fault_interval_s=4.0,
        max_pause_s=6.0,
    ),
)
CALLS = Profile(
    "calls",
    "an engine in steps that a user wrote, 2 to 4 workers",
    {
        "engine": f"{SAMPLER}:RingSampler",
        "max_batch_size": 8,
        "warm_up": {"measure_s": 0.0},
        "batching": {"checkpoint_every": 100},
        "scaling": SIM.model["scaling"] | {"max_workers": 4},
    },
    LoadShape(
        peak_rps=4.0,
        base_rps=0.5,
        steps=(300, 1000, 3000),
        sizes=("20", "60"),
        max_images=3,
        seed_count=12,
        reproducible=0.0,
        fault_interval_s=5.0,
        max_pause_s=6.0,
        has_streams=False,
    ),
    "call",
)
TEXTS = Profile(
    "texts",
    "simulated language models, 2 to 4 workers",
    {
        "engine": "sim",
        "max_batch_size": 8,
        "sim": {"task": "text", "t0_s": 0.02, "t1_s": 0.001, "load_s": 0.2, "prompt_token_s": 0.0005},
        "scaling": SIM.model["scaling"] | {"max_workers": 4},
    },
    LoadShape(
        peak_rps=5.0,
        base_rps=0.5,
        steps=(5, 50, 150, 400),
        sizes=("",),
        max_images=3,
        seed_count=1_000_000,
        reproducible=0.0,
        fault_interval_s=4.0,
        max_pause_s=6.0,
    ),
    "text",
)
MACHINES = Profile(
    "machines",
    "three machines, two of them with agents, 4 to 10 workers",
    {**SIM.model, "gpu_memory": "20GiB", "scaling": {**SIM.model["scaling"], "min_workers": 4, "max_workers": 10}},
    dataclasses.replace(SIM.load, fault_interval_s=5.0, max_pause_s=8.0, has_machines=True),
    machines=2,
)
PROFILES = {profile.name: profile for profile in (DIGITS, SIM, CALLS, TEXTS, MACHINES)}
