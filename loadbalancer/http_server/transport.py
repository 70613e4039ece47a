"""When the input of a connection is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl


class InputFlowControl(FlowControl):
    """Reads nothing while requests are queued. uvicorn would go on as soon as a request reads its own body."""

    def __init__(self, transport: asyncio.Transport, has_queued_input: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._has_queued_input = has_queued_input

    def resume_reading(self) -> None:
        if self.read_paused and not self._has_queued_input():
            super().resume_reading()
