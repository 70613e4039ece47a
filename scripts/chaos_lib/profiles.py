"""The two servers that chaos is let loose on: the built-in model on two workers, and simulated workers up to twelve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadbalancer.access.api_keys import ApiKey
from scripts.chaos_lib.fault_plan import Wishes

#: API keys by name, without their hashes: shares of 4 to 2 to 1, and one that may do little at once.
OWNERS: Mapping[str, ApiKey] = {
    "alice": ApiKey("0" * 64, weight=4.0),
    "bob": ApiKey("0" * 64, weight=2.0),
    "carol": ApiKey("0" * 64, weight=1.0, max_concurrent=12, requests_per_minute=1200),
}
#: Seconds that a request may take by its own word, and a job by the configuration.
TIMEOUT_S, JOB_TIMEOUT_S = 60.0, 150.0
#: Quick enough that a run sees them pass, slow enough for a machine that has other things to do.
_LIFE = {"heartbeat_s": 0.5, "lost_after_s": 3.0, "stuck_min_s": 10.0, "drain_timeout_s": 10.0, "orphan_after_s": 30.0}


@dataclass(frozen=True)
class Profile:
    """A model, its workers, and what is asked of them."""

    name: str
    title: str
    model: Mapping[str, Any]
    wishes: Wishes

    def config(self) -> dict[str, Any]:
        """The configuration that the server is started with."""
        return {
            "models": {self.name: dict(self.model)},
            "workers": _LIFE,
            "devices": {"use": "cpu", "cpu_slots": 2},
            "jobs": {"timeout_s": JOB_TIMEOUT_S, "checkpoint_every_s": 1.0},
        }


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
    Wishes(
        rush=2.0,
        lull=0.3,
        steps=(10, 40),
        sizes=("64x64",),
        most=2,
        seeds=8,
        reproducible=0.3,
        gap_s=9.0,
        pause_s=6.0,
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
    Wishes(
        rush=7.0,
        lull=0.5,
        steps=(8, 20, 40, 60),
        sizes=("64x64", "128x64"),
        most=4,
        seeds=1_000_000,
        reproducible=0.1,
        gap_s=4.0,
        pause_s=6.0,
    ),
)
PROFILES = {profile.name: profile for profile in (DIGITS, SIM)}
