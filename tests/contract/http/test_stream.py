"""`stream: true`, and clients that disconnect."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from scripts.harness.balancer import Server
from scripts.harness.processes import PATIENCE_S, wait_until
from wire.inputs import ImageInputs
from worker.engines.sim import expected_image

GENERATE = "/v1/images/generations"
PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"
PROGRESS = "image_generation.progress"


def expected(seed: int, steps: int = 8) -> bytes:
    return expected_image(ImageInputs("a seven", 64, 64, steps, 3.0, seed, "ddim"))


def events(answered: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the events; each must have one `event:` line and a matching `data:` line."""
    name = None
    for line in answered.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            event = json.loads(value)
            assert event["type"] == name
            yield event
        else:
            assert line == "" or field == ""  # a comment keeps the connection alive


@pytest.fixture
def sdk(shared: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared.base_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


def test_events_of_two_images(http: httpx.Client) -> None:
    body = {"prompt": "a seven", "seed": 7, "n": 2, "stream": True, "partial_images": 3, "output_format": "jpeg"}
    with http.stream("POST", GENERATE, json=body) as answered:
        assert answered.headers["content-type"].startswith("text/event-stream")
        received = list(events(answered))
    for index, seed in enumerate((7, 8)):
        # On a busy machine an image may be finished before the stream begins: then it has no progress to report.
        kinds = [event["type"] for event in received if event["index"] == index]
        assert (kinds.count(COMPLETED), kinds[-1]) == (1, COMPLETED)
        own = [event for event in received if event["index"] == index and event["type"] != PROGRESS]
        *previews, last = own
        assert [event["partial_image_index"] for event in previews] == list(range(len(previews)))
        assert 1 <= len(previews) <= 3
        for preview in previews:
            with Image.open(io.BytesIO(base64.b64decode(preview["b64_json"]))) as image:
                assert (image.format, image.size) == ("JPEG", (64, 64))
        wanted = ImageInputs("a seven", 64, 64, 8, 3.0, seed, "ddim", output_format="jpeg")
        assert base64.b64decode(last["b64_json"]) == expected_image(wanted)
        assert (last["type"], last["seed"], last["model"]) == (COMPLETED, seed, "quick")


def test_official_client_understands_the_stream(shared: Server, sdk: openai.OpenAI) -> None:
    with shared.stopped("quick-0"):  # until the stream has begun
        stream = sdk.images.generate(
            model="quick",
            prompt="a seven",
            stream=True,
            partial_images=2,
            extra_body={"seed": 7, "num_inference_steps": 30},
        )
    received = [event for event in stream if event.type in (PARTIAL, COMPLETED)]
    *previews, last = received
    assert [event.partial_image_index for event in previews if event.type == "image_generation.partial_image"] == [0, 1]
    assert last.type == "image_generation.completed"
    assert base64.b64decode(last.b64_json) == expected(7, steps=30)
    assert (last.size, last.output_format, last.background, last.quality) == ("64x64", "png", "opaque", "auto")
    assert last.usage.total_tokens == 0
    assert last.created_at > 1_700_000_000


async def test_official_async_client_understands_the_stream(shared: Server) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{shared.base_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as sdk:
        stream = await sdk.images.generate(model="quick", prompt="a seven", stream=True, extra_body={"seed": 7})
        received = [event async for event in stream if event.type == COMPLETED]
    assert [base64.b64decode(event.b64_json) for event in received] == [expected(7)]


def test_failure_is_the_last_event_of_the_stream(http: httpx.Client, sdk: openai.OpenAI) -> None:
    with http.stream("POST", GENERATE, json={"prompt": "sim:fail", "n": 2, "stream": True}) as answered:
        assert answered.status_code == 200
        received = list(events(answered))
    assert [event["type"] for event in received if event["type"] != PROGRESS] == ["error"]
    assert received[-1]["error"]["code"] == "generation_failed"
    stream = sdk.images.generate(model="quick", prompt="sim:fail", stream=True)
    with pytest.raises(openai.APIError, match="could not be generated") as failed:
        list(stream)
    assert failed.value.code == "generation_failed"


def test_stream_timeout_sends_error_event(http: httpx.Client) -> None:
    body = {"model": "absent", "prompt": "a seven", "stream": True, "timeout_s": 0.4}
    with http.stream("POST", GENERATE, json=body) as answered:
        first, last = events(answered)
    assert (first["type"], first["state"], first["queue_position"]) == (PROGRESS, "queued", 0)
    assert (last["type"], last["error"]["code"]) == ("error", "timeout")


def test_invalid_stream_request_returns_400(http: httpx.Client) -> None:
    answered = http.post(GENERATE, json={"prompt": "a seven", "stream": True, "size": "1x1"})
    assert answered.status_code == 400
    assert answered.json()["error"]["param"] == "size"


def test_queue_position_is_sent_first_and_on_change(http: httpx.Client) -> None:
    body = {"model": "slow", "prompt": "a seven", "stream": True}
    with http.stream("POST", GENERATE, json=body) as first:
        running = events(first)
        while next(running)["state"] != "running":
            pass
        with http.stream("POST", GENERATE, json=body) as third:
            with http.stream("POST", GENERATE, json=body | {"priority": 1}) as second:
                before = events(second)
                ahead = next(before)
                assert (ahead["state"], ahead["queue_position"]) == ("queued", 0)
                waiting = events(third)
                positions = [next(waiting)["queue_position"]]
                while positions[-1] != 1:  # a request with a higher priority passed it
                    positions.append(next(waiting)["queue_position"])
            assert next(waiting)["queue_position"] == 0  # that client has disconnected
            first.close()
            while (event := next(waiting))["state"] != "running":
                pass
            assert event["steps"] == 600
            while next(waiting)["step"] < 2:
                pass


# ---- clients that disconnect


def raw_request(server: Server, body: dict[str, Any]) -> socket.socket:
    content = json.dumps(body).encode()
    head = f"POST {GENERATE} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(head.encode() + content)
    return connection


def tasks(server: Server, model: str) -> tuple[int, int]:
    """Return the queued and running tasks of the model."""
    (stats,) = (stats for stats in server.snapshot().models if stats.model == model)
    return stats.queued, stats.running


def cancelled(http: httpx.Client) -> float:
    families = text_string_to_metric_families(http.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == "muster_events_total"]
    return sum(sample.value for sample in samples if sample.labels["event"] == "cancelled")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "waiting", "running"), [("slow", 1, 1), ("absent", 2, 0)])
def test_disconnect_cancels_all_tasks(
    shared: Server, http: httpx.Client, model: str, waiting: int, running: int, stream: bool
) -> None:
    wait_until(lambda: tasks(shared, model) == (0, 0), "an idle model")
    before = cancelled(http)
    with raw_request(shared, {"model": model, "prompt": "a seven", "n": 2, "stream": stream}):
        wait_until(lambda: tasks(shared, model) == (waiting, running), "both tasks on their way")
    wait_until(lambda: tasks(shared, model) == (0, 0), "both tasks gone")
    wait_until(lambda: cancelled(http) == before + 2, "the count of both cancellations")


def test_disconnect_within_body_logs_no_error(shared: Server, http: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", shared.port)) as connection:
        connection.sendall(f'POST {GENERATE} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{{"pro'.encode())
    wait_until(
        lambda: f'muster_http_requests_total{{route="{GENERATE}",status="499"}}' in http.get("/metrics").text, "499"
    )
    assert "Traceback" not in shared.log("loadbalancer")
