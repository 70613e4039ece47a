"""Machines of a simulated cluster, and their failures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple


class SimMachine(NamedTuple):
    """A machine with GPUs. Times are in seconds."""

    name: str
    gpus: int
    #: Mean time between failures; None: it does not fail.
    mean_life_s: float | None = None
    #: From a failure until workers can load there again.
    repair_s: float = 300.0

    @property
    def slots(self) -> list[str]:
        """The names of its GPUs."""
        return [f"{self.name}/cuda:{number}" for number in range(self.gpus)]


class MachineFailure(NamedTuple):
    """All workers on these GPUs end at `at`. No worker loads there before `until`."""

    at: float
    until: float
    slots: frozenset[str]


def failures_of(machines: Sequence[SimMachine], span_s: float, seed: int) -> list[MachineFailure]:
    """Return random failures within the span in order of time. Equal seeds give equal failures."""
    failures = []
    for machine in machines:
        if machine.mean_life_s is None:
            continue
        rng = random.Random(f"{seed} {machine.name}")
        at = rng.expovariate(1 / machine.mean_life_s)
        while at < span_s:
            failures.append(MachineFailure(at, at + machine.repair_s, frozenset(machine.slots)))
            at += machine.repair_s + rng.expovariate(1 / machine.mean_life_s)
    return sorted(failures, key=lambda failure: failure.at)
