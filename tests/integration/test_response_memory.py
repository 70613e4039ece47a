"""Finished images count for their key until the request is closed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loadbalancer.generation.in_flight import InFlightRequest, RequestTracker, ResponseMemory
from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.scaling.control_plane import ControlPlane
from loadbalancer.schema.errors import TooBusy
from scripts.harness.processes import PATIENCE_S
from tests.support.in_process_service import in_process_service, inputs


async def test_images_that_are_not_read_bound_their_key(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        await service.start("w")
        scheduler, memory = service.scheduler, ResponseMemory(1, RefusalCounter())
        metrics = Metrics(scheduler.snapshot, scheduler.step_curves)
        tracker = RequestTracker(scheduler, metrics, ControlPlane(), memory)

        def request(owner: str) -> GenerationSpec:
            return GenerationSpec("m", [inputs(seed, steps=2) for seed in range(2)], 60.0, 0, owner=owner)

        unread = tracker.accept(InFlightRequest, request("alice"))
        async with asyncio.timeout(PATIENCE_S):
            await unread.ended
        assert memory.held == sum(len(image.image) for image in unread.images.values()) > 0
        with pytest.raises(TooBusy):
            tracker.accept(InFlightRequest, request("alice"))
        tracker.accept(InFlightRequest, request("bob")).close()
        for _ in range(2):
            unread.close()
        assert memory.held == 0
        tracker.accept(InFlightRequest, request("alice")).close()
