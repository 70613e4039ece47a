"""The connection to the balancer as the step loop uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from wire.codec import BalancerEnvelope, WorkerEnvelope


@dataclass(frozen=True)
class DrainRequested:
    """Request from inside the process: accept nothing more, finish or hand back what runs, then exit."""

    reason: str
    #: The worker serves on for so long, and while the balancer is stopping.
    grace_s: float = 0.0


class Transport(Protocol):
    """Sends to the balancer and receives from it; `BalancerClient` is one."""

    def send(self, *envelopes: WorkerEnvelope) -> None:
        """Queue these; they leave together. Callable from any thread."""

    def receive(self, timeout_s: float) -> list[BalancerEnvelope | DrainRequested]:
        """Return everything that has arrived; wait up to `timeout_s` for the first."""
