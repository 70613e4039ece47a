"""The order in which the planner uses machines for a model. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from configs.devices import machine_of
from controller.planning.machines import Machine
from host.types import WorkerProcess

#: The controller's own machine. It has the weights of every model.
_OWN = ""


def model_machines(model: str, machines: Sequence[Machine]) -> frozenset[str]:
    """Return the machines with the model's weights at hand."""
    return frozenset({_OWN, *(machine.name for machine in machines if model in machine.models)})


def preferred_machines(
    model: str, spares: Sequence[WorkerProcess], machines: Sequence[Machine]
) -> tuple[frozenset[str], ...]:
    """Return sets of machines, the best first: those with a standby worker, then those with the weights.

    The result is empty if the controller's machine is the only one.
    """
    if not machines:
        return ()
    waiting = frozenset(machine_of(child.device) for child in spares if child.drained_at is None)
    found = model_machines(model, machines)
    return (waiting, found) if waiting else (found,)
