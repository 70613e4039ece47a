"""A flood from one key, and ten times what can be done, seen by clients of a real server.

The server itself tells each client how many images go before its own: that is what is looked at, and no clock.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S
from tests.contract.http.test_access import bearer, make_key

BATCH = 4
#: A turn, in which a full batch is done, takes 0.8 s.
MODEL = sim(t0_s=0.02, t1_s=0.005, max_batch_size=BATCH, defaults={"size": "64x64", "steps": 20})
DRAW = {"prompt": "a seven", "stream": True}


def client(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.base_url, timeout=PATIENCE_S, limits=limits)


async def streamed(http: httpx.AsyncClient, **headers: str) -> tuple[httpx.Response, list[dict[str, Any]]]:
    """The answer, and the events of a stream."""
    answer = await http.post("/v1/images/generations", json=DRAW, headers=headers)
    lines = answer.text.splitlines() if answer.status_code == 200 else []
    return answer, [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


async def test_a_single_request_goes_before_a_thousand_jobs_of_another_key(tmp_path: Path) -> None:
    many, one = bearer(make_key(tmp_path, "many")), bearer(make_key(tmp_path, "one"))
    with running(tmp_path, {"sim": MODEL}, 1, queue={"deadline_slack": None}) as server:
        async with client(server) as http:

            async def job(number: int) -> int:
                body = {"path": "/predict", "body": {"prompt": f"job {number}", "num_inference_steps": 40}}
                return (await http.post("/v1/jobs", json=body, headers=many)).status_code

            for hundred in range(10):
                assert await asyncio.gather(*(job(100 * hundred + number) for number in range(100))) == [202] * 100
            for _ in range(3):
                answer, events = await streamed(http, **one)
                assert answer.status_code == 200
                assert [event["type"] for event in events[-1:]] == ["image_generation.completed"]
                # None but those that run goes before it, and the next place that becomes free is its own.
                assert max(event["queue_position"] for event in events if "queue_position" in event) == 0
                [model] = server.snapshot().models
                assert model.queued > 100, "there still is a flood"


@pytest.mark.parametrize(
    ("queue", "most"),
    [
        ({"max_tasks": 12}, 12),
        # 30 images of 20 steps. Four of them take 0.04 s a step as configured; fewer fit where steps take longer.
        ({"max_work_s": 6.0}, 31),
    ],
)
async def test_ten_times_the_load_is_let_in_as_far_as_the_queue_goes(
    tmp_path: Path, queue: dict[str, float], most: int
) -> None:
    with running(tmp_path / "data", {"sim": MODEL}, 1, queue=queue) as server:
        async with client(server) as http:
            assert (await http.post("/predict", json={"prompt": "the first is measured"})).status_code == 200
            statuses, positions = Counter[int](), [0]

            async def ask() -> None:
                answer, events = await streamed(http)
                statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    assert events[-1]["type"] == "image_generation.completed"
                    positions.extend(event["queue_position"] for event in events if "queue_position" in event)
                    return
                assert answer.json()["error"]["code"] == "queue_full"
                assert 1 <= int(answer.headers["retry-after"]) <= 60

            waiting: list[asyncio.Task[None]] = []
            for _ in range(200):  # one every 20 ms, where one in 200 ms can be done
                waiting.append(asyncio.create_task(ask()))
                await asyncio.sleep(0.02)
            await asyncio.gather(*waiting)
    assert statuses.keys() == {200, 429}
    assert 2 < max(positions) < most, "it was full, and no fuller"
    assert statuses[200] > BATCH + max(positions), "the queue was filled again as it emptied"
