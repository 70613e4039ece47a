"""What simulated engines without a device share."""

from __future__ import annotations

import time

import psutil

from configs.model_settings import Model
from worker.engine import Row


class SleepingEngine:
    """Implements the part of `StepEngine` around the steps by sleeping."""

    def __init__(self, model: Model) -> None:
        self._sim = model.sim

    def fetch(self) -> None:
        time.sleep(self._sim.load_s)

    def load(self) -> None:
        time.sleep(self._sim.activate_s)

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def release(self, row: Row) -> None:
        del row

    def close(self) -> None:
        """Nothing to close."""

    def memory_bytes(self) -> int:
        """Return the memory of this process."""
        return int(psutil.Process().memory_info().rss)
