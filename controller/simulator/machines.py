"""Machines of a simulated cluster, and the failures of machines and of their network switches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from controller.planning.machines import Machine
from controller.types import Device


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


class SimSwitch(NamedTuple):
    """A network switch. While it fails, its machines cannot be reached; their workers go on and return. In seconds."""

    name: str
    machines: Sequence[str]
    #: Mean time between failures; None: it does not fail.
    mean_life_s: float | None = None
    repair_s: float = 120.0


class MachineFailure(NamedTuple):
    """A failure of machines at `at`, until `until`.

    All workers on these GPUs end, or are cut off and return with `until`. No worker loads there before `until`.
    """

    at: float
    until: float
    slots: frozenset[str]
    machines: frozenset[str] = frozenset()
    #: The machines cannot be reached, but their workers do not end.
    is_cut: bool = False


def failures_of(
    machines: Sequence[SimMachine], span_s: float, seed: int, switches: Sequence[SimSwitch] = ()
) -> list[MachineFailure]:
    """Return random failures within the span in order of time. Equal seeds give equal failures."""
    failures = []
    for machine in machines:
        slots, itself = frozenset(machine.slots), frozenset({machine.name})
        times = _times(machine.name, machine.mean_life_s, machine.repair_s, span_s, seed)
        failures += [MachineFailure(at, at + machine.repair_s, slots, itself) for at in times]
    for switch in switches:
        behind = frozenset(switch.machines)
        slots = frozenset(slot for machine in machines if machine.name in behind for slot in machine.slots)
        times = _times(f"switch {switch.name}", switch.mean_life_s, switch.repair_s, span_s, seed)
        failures += [MachineFailure(at, at + switch.repair_s, slots, behind, is_cut=True) for at in times]
    return sorted(failures, key=lambda failure: failure.at)


def _times(name: str, mean_life_s: float | None, repair_s: float, span_s: float, seed: int) -> Iterator[float]:
    """Yield the times of failures within the span."""
    if mean_life_s is None or mean_life_s == math.inf:
        return
    rng = random.Random(f"{seed} {name}")
    at = rng.expovariate(1 / mean_life_s)
    while at < span_s:
        yield at
        at += repair_s + rng.expovariate(1 / mean_life_s)


class MachineStates:
    """Which machines cannot be reached, as an agent observes it."""

    def __init__(self, machines: Sequence[SimMachine], models: Iterable[str]) -> None:
        names = frozenset(models)
        self._machines = {
            one.name: Machine(one.name, [Device(slot) for slot in one.slots], names, 0.0) for one in machines
        }
        self._silent_until: dict[str, float] = {}

    def fail(self, failure: MachineFailure) -> None:
        for name in failure.machines:
            self._silent_until[name] = max(failure.until, self._silent_until.get(name, 0.0))
            if name in self._machines:
                self._machines[name] = replace(self._machines[name], last_report_at=failure.at)

    def at(self, now: float) -> list[Machine]:
        """Return all machines as the controller knows them."""
        silent = {name for name, until in self._silent_until.items() if until > now}
        return [
            replace(machine, silent=True) if name in silent else replace(machine, last_report_at=now)
            for name, machine in self._machines.items()
        ]
