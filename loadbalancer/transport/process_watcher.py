"""The death of a worker on this machine is noticed at once, not by its silence."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection


class ProcessWatcher:
    """Watches the workers' processes. All methods are called in the event loop."""

    def __init__(self, died: Callable[[str], None]) -> None:
        self._died = died
        self._handles: dict[str, int] = {}

    def watch(self, worker: str, pid: int) -> None:
        """`died` is told once of the end of this process, in place of any that was watched before for the worker."""
        self.leave(worker)
        try:
            handle = os.pidfd_open(pid)
        except (OSError, AttributeError):  # another pid namespace or another system: silence will tell
            return
        self._handles[worker] = handle
        asyncio.get_running_loop().add_reader(handle, self._ended, worker)

    def leave(self, worker: str) -> None:
        """Watch the worker no more. Idempotent."""
        handle = self._handles.pop(worker, None)
        if handle is not None:
            asyncio.get_running_loop().remove_reader(handle)
            os.close(handle)

    def keep(self, workers: Collection[str]) -> None:
        """Watch none but these."""
        for worker in self._handles.keys() - workers:
            self.leave(worker)

    def _ended(self, worker: str) -> None:
        self.leave(worker)
        self._died(worker)
