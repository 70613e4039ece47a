"""An attack, its bounds, and what was observed of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.attack_lib.target import Target

MIB = 1 << 20


class BoundBroken(Exception):
    """The server did what it must not do; the text says what."""


@dataclass(frozen=True)
class Bounds:
    """What one client may cost. The memory is that of the balancer."""

    rss_bytes: int
    stall_s: float
    log_bytes: int = 64 << 10


#: A client without a key, and one with a key, beyond the work that it is allowed.
STRANGER = Bounds(16 * MIB, 0.3)
CUSTOMER = Bounds(64 * MIB, 0.5)


@dataclass(frozen=True)
class Attack:
    """One thing that a client, a worker or a user of the machine does to the server."""

    name: str
    #: What the server should answer or do, for the table.
    expected: str
    #: Does it and returns what was observed. Raises `BoundBroken`.
    run: Callable[[Target], str]
    bounds: Bounds = STRANGER
    #: Part of the short profile.
    is_short: bool = True
    #: The balancer must go on in the same process and answer every health check.
    keeps_process: bool = True


@dataclass
class Outcome:
    """What one attack did to the server."""

    attack: Attack
    observed: str = ""
    rss_bytes: int = 0
    #: Longest answer of `/healthz` while it ran.
    stall_s: float = 0.0
    log_bytes: int = 0
    wall_s: float = 0.0
    broken: list[str] = field(default_factory=list)


def judge(outcome: Outcome, *, stall_factor: float) -> list[str]:
    """Return the bounds that are broken. `stall_factor` widens that of the stall on a busy machine."""
    bounds, found = outcome.attack.bounds, []
    if outcome.rss_bytes > bounds.rss_bytes:
        found.append(f"RSS +{outcome.rss_bytes / MIB:.0f} MiB, allowed {bounds.rss_bytes / MIB:.0f}")
    if outcome.stall_s > bounds.stall_s * stall_factor:
        found.append(f"/healthz stalled {outcome.stall_s:.2f} s, allowed {bounds.stall_s * stall_factor:.2f}")
    if outcome.log_bytes > bounds.log_bytes:
        found.append(f"logs +{outcome.log_bytes} B, allowed {bounds.log_bytes}")
    return found
