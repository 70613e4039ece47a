"""Machines whose agents run workers for the controller, and the order in which a model uses them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from configs.devices import kind_of, machine_of
from controller.types import Device
from host.types import MemoryReading, WorkerProcess

#: The controller's own machine. It has the weights of every model.
_OWN = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine at one moment: the last report of its agent, and when it arrived. The planner reads it at each tick.

    The controller's own machine has no agent and is not listed. One that has fallen silent stays listed with its last
    report, because it may return with its workers. One that has a key and has not connected is listed without devices.
    Device names carry the machine's name, as in `gpu-box/cuda:0`. Times are seconds on the controller's clock.
    """

    name: str
    devices: Sequence[Device]
    #: Models whose weights are at hand, by the names of the configuration.
    models: frozenset[str]
    #: When its last report arrived; None before the first.
    last_report_at: float | None
    #: The agent has sent nothing for `workers.lost_after_s`: no worker is planned there, and its workers count as lost.
    silent: bool = False
    #: Why no worker may start there, such as another version or configuration; empty if it is used.
    refused_reason: str = ""
    #: Models that cannot run there, such as one whose Python interpreter is missing, with the reason.
    unusable_models: Mapping[str, str] = field(default_factory=dict)
    #: The driver's readings of its GPUs.
    readings: Sequence[MemoryReading] = ()
    #: Product names by device.
    device_names: Mapping[str, str] = field(default_factory=dict)
    #: Main memory in bytes, and what of it is available; None if it is not reported.
    memory_bytes: int | None = None
    available_bytes: int | None = None

    def __str__(self) -> str:
        kinds = Counter(kind_of(device.name) for device in self.devices)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"{self.name}: {listed}{f'; not used: {self.refused_reason}' if self.refused_reason else ''}"


def model_machines(model: str, machines: Sequence[Machine]) -> frozenset[str]:
    """Return the machines with the model's weights at hand."""
    return frozenset({_OWN, *(machine.name for machine in machines if model in machine.models)})


def preferred_machines(
    model: str, spares: Sequence[WorkerProcess], machines: Sequence[Machine]
) -> tuple[frozenset[str], ...]:
    """Return sets of machines, the best first: those with a standby worker, then those with the weights.

    It is for a model whose workers may run on several machines.
    """
    waiting = frozenset(machine_of(child.device) for child in spares if child.drained_at is None)
    found = model_machines(model, machines)
    return (waiting, found) if waiting else (found,)
