"""The end of a worker's process is reported once, and not for the process after it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from loadbalancer.transport.process_watcher import ProcessWatcher
from scripts.harness.processes import PATIENCE_S


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


async def until_reported(reported: list[str]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not reported:
            await asyncio.sleep(0.01)


async def test_the_end_is_reported_once(process: subprocess.Popen[bytes]) -> None:
    reported: list[str] = []
    watcher = ProcessWatcher(reported.append)
    watcher.watch("w", process.pid)
    process.kill()
    await until_reported(reported)
    await asyncio.sleep(0.2)
    assert reported == ["w"]


@pytest.mark.parametrize("by", ["watch", "unwatch", "watch_only"])
async def test_a_worker_that_has_come_back_is_not_reported(process: subprocess.Popen[bytes], by: str) -> None:
    """The process has ended, and its report is due, when the worker's next process introduces itself."""
    reported: list[str] = []
    watcher = ProcessWatcher(reported.append)
    watcher.watch("w", process.pid)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as following:
        watcher._ended("w")
        if by == "watch":
            watcher.watch("w", following.pid)
        elif by == "unwatch":
            watcher.unwatch("w")
        else:
            watcher.watch_only([])
        await asyncio.sleep(0.3)
        assert reported == []
        following.kill()
    if by == "watch":
        await until_reported(reported)
