"""Runs attacks one after the other on one server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.attack_lib import (
    body_attacks,
    call_attacks,
    disconnect_attacks,
    http_attacks,
    local_attacks,
    memory_attacks,
    request_attacks,
    result_attacks,
    tenant_attacks,
    worker_attacks,
)
from scripts.attack_lib.attack import Attack, Outcome
from scripts.attack_lib.measure import attack_single
from scripts.attack_lib.target import Target

#: The last ones restart the balancer.
_MODULES = (
    http_attacks,
    request_attacks,
    body_attacks,
    call_attacks,
    disconnect_attacks,
    memory_attacks,
    tenant_attacks,
    result_attacks,
    worker_attacks,
    local_attacks,
)
ALL: list[Attack] = [attack for module in _MODULES for attack in module.ATTACKS]


def run_attacks(
    folder: Path,
    *,
    only: str = "",
    is_short: bool = False,
    factor: float = 1.0,
    progress: Callable[[str, bool], None] = lambda *_: None,
) -> list[Outcome]:
    """Start a server in the folder, attack it, end it. `progress` is called after each attack."""
    chosen = [attack for attack in ALL if only.lower() in attack.name.lower() and (attack.is_short or not is_short)]
    target = Target(folder, stall_factor=factor)
    outcomes = []
    try:
        target.warm_up()
        for attack in chosen:
            outcome = attack_single(attack, target)
            outcomes.append(outcome)
            progress(attack.name, bool(outcome.broken))
    finally:
        target.end()
    return outcomes
