"""The page's data: what each page gets, whenever it connects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from configs.settings import Settings
from loadbalancer.page.feed import Subscription
from loadbalancer.page.sampler import PageSampler
from loadbalancer.scaling.control_plane import ControlPlane
from loadbalancer.scheduler_service import SchedulerService
from scripts.harness.processes import PATIENCE_S
from wire.scaling import ControllerReport, DecisionRecord


def report(last: int) -> ControllerReport:
    """Return the report that brings the decision of this number."""
    made = DecisionRecord(last, 0.0, "m", "tick", 1, 0, 1, True, "", {})
    return ControllerReport(0.0, 0.0, (), (), (), None, last - 1, (made,), last)


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[tuple[ControlPlane, PageSampler]]:
    settings = Settings.model_validate({"models": {"m": {"engine": "sim"}}, "data_dir": str(tmp_path)})
    plane = ControlPlane()
    sampler = PageSampler(SchedulerService(settings, f"ipc://{tmp_path}/workers.sock"), plane)
    yield plane, sampler
    await sampler.stop()


async def decisions_until(page: Subscription, last: int) -> list[int]:
    """Return the numbers of the decisions that the page gets, up to this one and those that come with it."""
    found: list[int] = []
    async with asyncio.timeout(PATIENCE_S):
        async for message in page.messages():
            body = json.loads(message.decode().partition("data: ")[2])
            found += [each["number"] for each in body.get("decisions", ())]
            if last in found:
                return found
    raise AssertionError("the stream has ended")


async def test_every_page_gets_each_decision_once(control: tuple[ControlPlane, PageSampler]) -> None:
    plane, sampler = control
    plane.on_report(report(1), 0.0)
    first = sampler.connect()
    plane.on_report(report(2), 0.0)
    second = sampler.connect()  # before the first one was told of it
    plane.on_report(report(3), 0.0)
    sampler.start()
    assert await decisions_until(first, 3) == [1, 2, 3]
    assert await decisions_until(second, 3) == [1, 2, 3]
