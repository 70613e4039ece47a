"""What a forward pass costs by picture size, read from the workers once per tick. Pure."""

from __future__ import annotations

from loadbalancer.scheduling.request_queue import Size
from loadbalancer.scheduling.worker_registry import WorkerRegistry

#: Stands for every cost until one was measured: then only the number of steps counts.
_UNMEASURED_S = 1.0


class StepCosts:
    """One model's costs, in seconds of one worker with full batches."""

    def __init__(self, roster: WorkerRegistry, model: str) -> None:
        self._roster = roster
        self._model = model
        self._measured = False
        self._seconds: dict[Size, float] = {}

    def step_s(self, size: Size) -> float:
        """Seconds of a forward pass of an image of this size; the same until the next `refresh`."""
        if not self._measured:
            return _UNMEASURED_S
        if size not in self._seconds:
            self._seconds[size] = self._roster.step_cost(self._model, size) or self._usual_s
        return self._seconds[size]

    def refresh(self) -> float | None:
        """Look anew. Gives what all costs are to be multiplied by when the first was measured, else None.

        Where no worker is left to ask, what was measured last stands.
        """
        usual_s = self._roster.step_cost(self._model, (0, 0))
        if not usual_s:
            return None
        first, self._measured = not self._measured, True
        self._usual_s = usual_s
        self._seconds.clear()
        return usual_s / _UNMEASURED_S if first else None
