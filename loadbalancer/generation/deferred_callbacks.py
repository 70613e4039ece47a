"""Callbacks in the next turn of the event loop, after the work that has caused them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class DeferredCallbacks:
    """Calls what was added in one turn of the loop in the next one, in order. It asks the loop once for all of them."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def add(self, callback: Callable[[], None]) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        self._waiting.append(callback)

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            try:
                callback()
            except Exception:  # an error here must not affect other requests
                log.exception("a deferred callback failed")
