"""How long images are kept behind their URLs while the system clock is set."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadbalancer.storage.database import Database, sweep_forever
from loadbalancer.storage.records import RetentionLimits, StoredResult
from loadbalancer.storage.result_store import ResultStore
from scripts.harness.processes import PATIENCE_S

TTL_S = 3600.0
DAY_S = 86_400.0


class SettableClock:
    """A system clock that is `ahead_s` before the right time."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


def limits(now: float) -> RetentionLimits:
    return RetentionLimits(now - DAY_S, 1 << 30, 1 << 30, now - TTL_S)


@contextlib.asynccontextmanager
async def swept(file: Path, wall: SettableClock) -> AsyncIterator[ResultStore]:
    database = Database(file, wall=wall)
    sweeping = asyncio.create_task(sweep_forever(database, 0.01, limits))
    try:
        yield ResultStore(database, TTL_S)
    finally:
        sweeping.cancel()
        await asyncio.wait({sweeping})
        await database.close()


async def existing(store: ResultStore, result: str) -> StoredResult:
    found = await store.find(result)
    assert found is not None
    return found


@pytest.mark.parametrize("jump_s", [2 * TTL_S, DAY_S, 365 * DAY_S])
async def test_clock_set_ahead_expires_nothing_at_once(tmp_path: Path, jump_s: float) -> None:
    wall = SettableClock()
    async with swept(tmp_path / "j", wall) as store:
        [early] = await store.add("a", "image/png", [b"x"])
        wall.ahead_s = jump_s
        [late] = await store.add("a", "image/png", [b"y"])
        await asyncio.sleep(0.1)  # some sweeps
        for result in (early, late):
            assert 0.0 < store.remaining_s(await existing(store, result)) <= TTL_S


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("jump_s", [2 * TTL_S, DAY_S, 365 * DAY_S])
async def test_clock_set_back_keeps_nothing_for_ever(tmp_path: Path, jump_s: float, restarts: bool) -> None:
    """What was made in the future is made now."""
    file, wall = tmp_path / "j", SettableClock()
    wall.ahead_s = jump_s
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(swept(file, wall))
        [result] = await store.add("a", "image/png", [b"x"])
        wall.ahead_s = 0.0
        if restarts:
            await stack.aclose()
            store = await stack.enter_async_context(swept(file, wall))
        async with asyncio.timeout(PATIENCE_S):
            while (await existing(store, result)).made > time.time():
                await asyncio.sleep(0.01)
        assert 0.0 < store.remaining_s(await existing(store, result)) <= TTL_S
        wall.ahead_s = 2 * TTL_S  # as after a restart two hours later
        async with swept(file, wall) as later:
            assert await later.find(result) is None
