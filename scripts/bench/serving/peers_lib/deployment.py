"""What is deployed and what is measured: values without I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scripts.bench.serving.peers_lib.apps.user_model import T0_S, T1_S

#: The same body for every server: one instance, as in KServe's V1 protocol.
BODY = b'{"instances":[{"x":1}]}'


@dataclass(frozen=True)
class Deployment:
    """A user model in a number of workers."""

    #: `noop`, `accelerator` or `large`.
    model: str
    workers: int = 1
    max_batch_size: int = 1
    #: The default of MOSEC and of Ray Serve.
    batch_wait_ms: int = 10

    @property
    def ideal_per_s(self) -> float:
        """Requests per second of simulated accelerators that always run full batches."""
        return self.workers * self.max_batch_size / (T0_S + T1_S * self.max_batch_size)

    def environment(self, folder: Path, port: int) -> dict[str, str]:
        """Return the variables that the user model reads."""
        return {
            "PEERS_MODEL": self.model,
            "PEERS_WORKERS": str(self.workers),
            "PEERS_BATCH": str(self.max_batch_size),
            "PEERS_WAIT_MS": str(self.batch_wait_ms),
            "PEERS_FOLDER": str(folder),
            "PEERS_PORT": str(port),
        }


def clean_environment() -> Mapping[str, str]:
    """Return this process's variables without those of other environments and of earlier runs."""
    unwanted = ("MUSTER_", "PEERS_", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}


@dataclass(frozen=True)
class Measurement:
    """What the clients of one server observed in one scenario."""

    #: Successful requests per second.
    per_s: float = float("nan")
    p50_ms: float = float("nan")
    p99_ms: float = float("nan")
    answered: int = 0
    #: Answered with 429 or 503.
    refused: int = 0
    #: Every other status, lost connections and timeouts.
    errors: int = 0
    #: `wrk` or `python`, the benchmark's own client.
    client: str = "python"
    #: Further numbers of the scenario, by name; errors by their kind.
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One measurement in its place; without a measurement, the reason."""

    scenario: str
    server: str
    round: int
    measurement: Measurement | None = None
    reason: str = ""
