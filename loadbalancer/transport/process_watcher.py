"""Notices the death of local worker processes by pidfd, long before their heartbeats are missed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection

#: Between the end of a process and its report: what it has sent last may still be on its way through ZeroMQ's thread.
_LAST_MESSAGES_S = 0.1


class ProcessWatcher:
    """Watches one process per worker. All methods are called in the event loop.

    `on_end` is called once with the worker's name when its process has ended, unless it is not watched any more.
    """

    def __init__(self, on_end: Callable[[str], None]) -> None:
        self._on_end = on_end
        self._handles: dict[str, int] = {}
        #: Reports of processes that have ended.
        self._reports: dict[str, asyncio.TimerHandle] = {}

    def watch(self, worker: str, pid: int) -> None:
        """Watch this process, in place of any that was watched before for the worker."""
        self.unwatch(worker)
        try:
            handle = os.pidfd_open(pid)
        except (OSError, AttributeError):  # another pid namespace or system: the heartbeat timeout applies
            return
        self._handles[worker] = handle
        asyncio.get_running_loop().add_reader(handle, self._ended, worker)

    def unwatch(self, worker: str) -> None:
        """Stop watching the worker. Idempotent."""
        if (report := self._reports.pop(worker, None)) is not None:
            report.cancel()
        handle = self._handles.pop(worker, None)
        if handle is not None:
            asyncio.get_running_loop().remove_reader(handle)
            os.close(handle)

    def watch_only(self, workers: Collection[str]) -> None:
        """Stop watching all other workers."""
        for worker in (self._handles.keys() | self._reports.keys()).difference(workers):
            self.unwatch(worker)

    def _ended(self, worker: str) -> None:
        self.unwatch(worker)
        self._reports[worker] = asyncio.get_running_loop().call_later(_LAST_MESSAGES_S, self._report, worker)

    def _report(self, worker: str) -> None:
        del self._reports[worker]
        self._on_end(worker)
