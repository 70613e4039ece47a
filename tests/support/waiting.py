"""Waiting in the event loop of a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from scripts.harness.processes import PATIENCE_S


async def until(condition: Callable[[], object]) -> None:
    """Return as soon as the condition holds. Raises `TimeoutError` if it does not in time."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)
