"""A flood from one API key, and ten times the load that a server can process.

The tests check the queue positions that the server reports to its clients, and no times.
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
from tests.support.waiting import until

BATCH = 4
#: A full batch takes 0.8 s.
MODEL = sim(t0_s=0.02, t1_s=0.005, max_batch_size=BATCH, defaults={"size": "64x64", "steps": 20})
DRAW = {"prompt": "a seven", "stream": True}


def client(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.base_url, timeout=PATIENCE_S, limits=limits)


async def streamed(http: httpx.AsyncClient, **headers: str) -> tuple[httpx.Response, list[dict[str, Any]]]:
    """Return the answer and the events of its stream."""
    answer = await http.post("/v1/images/generations", json=DRAW, headers=headers)
    lines = answer.text.splitlines() if answer.status_code == 200 else []
    return answer, [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


async def test_request_is_served_before_thousand_jobs_of_other_key(tmp_path: Path) -> None:
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
                # Only running tasks are served before it, and it gets the next free slot.
                assert max(event["queue_position"] for event in events if "queue_position" in event) == 0
                [model] = server.snapshot().models
                assert model.queued > 100, "most jobs still wait"


@pytest.mark.parametrize(
    ("queue", "max_position"),
    [
        ({"max_tasks": 12}, 12),
        # 30 images of 20 steps. Four of them take 0.04 s a step as configured; fewer fit where steps take longer.
        ({"max_work_s": 6.0}, 31),
    ],
)
async def test_tenfold_load_is_accepted_up_to_queue_limit(
    tmp_path: Path, queue: dict[str, float], max_position: int
) -> None:
    with running(tmp_path / "data", {"sim": MODEL}, 1, queue=queue) as server:
        async with client(server) as http:
            assert (await http.post("/predict", json={"prompt": "measured"})).status_code == 200
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

            for _ in range(2):
                refused = statuses[429]
                with server.stopped():  # until the queue is full, however slowly they arrive
                    waiting = [asyncio.create_task(ask()) for _ in range(60)]
                    await until(lambda before=refused: statuses[429] > before)  # type: ignore[misc]
                await asyncio.gather(*waiting)
    assert statuses.keys() == {200, 429}
    assert 2 < max(positions) < max_position, "the queue fills up to its limit"
    assert statuses[200] > BATCH + max(positions), "the queue is refilled when it is empty"


async def test_many_texts_with_large_schemas_start_at_once(tmp_path: Path) -> None:
    """Together they are more than one message to a worker may have; it dropped such a message, and they never began."""
    schema = {"type": "object", "properties": {f"p{number:05}": {"type": "string"} for number in range(1800)}}
    form = {"type": "json_schema", "json_schema": {"name": "large", "schema": schema}}
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "n": 16,
        "max_tokens": 2,
        "timeout_s": 170,
        "response_format": form,
    }
    model = {"engine": "sim", "max_batch_size": 128, "sim": {"task": "text", "load_s": 0}, "warm_up": {"measure_s": 0}}
    with running(tmp_path, {"words": model}, 0) as server:
        async with httpx.AsyncClient(base_url=server.base_url, timeout=PATIENCE_S) as http:
            asked = [asyncio.create_task(http.post("/v1/chat/completions", json=body)) for _ in range(8)]
            await until(lambda: server.snapshot().models[0].queued == 128)
            server.start_worker("words")
            answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200] * 8
