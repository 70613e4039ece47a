"""Clients that do not read their responses: they are aborted and do not affect others."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, wait_until
from wire.inputs import ImageInputs
from worker.engines.sim import expected_image

GENERATE = "/v1/images/generations"
#: Much larger than the socket buffers for a client that does not read.
IMAGES, SIDE = 24, 2048
SEND_TIMEOUT_S = 1.5
BODY = {"prompt": "a seven", "n": IMAGES, "seed": 1, "size": f"{SIDE}x{SIDE}", "output_format": "jpeg"}
MODELS = {
    "quick": sim(limits={"max_pixels": SIDE * SIDE}, max_batch_size=16),
    # The images run one after another, 0.6 s each: together they take longer than the send timeout.
    "slow": sim(limits={"max_pixels": SIDE * SIDE}, t0_s=0.2, max_batch_size=1),
}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"max_n": IMAGES, "send_timeout_s": SEND_TIMEOUT_S}
    with running(tmp_path_factory.mktemp("big"), MODELS, 1, server=settings) as server:
        yield server
        assert "Traceback" not in server.log("loadbalancer")


def wanted(**changes: Any) -> bytes:
    return json.dumps(BODY | {"model": "quick", "num_inference_steps": 3} | changes).encode()


def ask(server: Server, key: str = "", *, buffer: int = 4096, **changes: Any) -> socket.socket:
    """Send a request over a connection with a receive buffer of this many bytes."""
    content = wanted(**changes)
    head = f"POST {GENERATE} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}"
    head += f"\r\nidempotency-key: {key}" if key else ""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(PATIENCE_S)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(f"{head}\r\n\r\n".encode() + content)
    return connection


def all_of(connection: socket.socket) -> bytes:
    """Return all data until the server closes or aborts the connection."""
    parts: list[bytes] = []
    try:
        while part := connection.recv(1 << 18):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def counted(server: Server, event: str) -> float:
    lines = httpx.get(f"{server.base_url}/metrics", timeout=PATIENCE_S).text.splitlines()
    return next((float(line.split()[-1]) for line in lines if f'event="{event}"' in line), 0.0)


def tasks(server: Server) -> int:
    return sum(model.queued + model.running for model in server.snapshot().models)


@pytest.fixture(scope="module")
def large(big: Server) -> bytes:
    """A response that is stored for its idempotency key."""
    headers = {"idempotency-key": "large"}
    answer = httpx.post(f"{big.base_url}{GENERATE}", content=wanted(), headers=headers, timeout=PATIENCE_S)
    assert answer.status_code == 200
    assert len(answer.content) > 2_000_000
    return answer.content


def test_unread_large_response_is_aborted(big: Server, large: bytes) -> None:
    before = counted(big, "slow_readers")
    with ask(big, "large") as connection:
        wait_until(lambda: counted(big, "slow_readers") == before + 1, "the connection to be broken off")
        assert len(all_of(connection)) < len(large), "the rest was not kept for it"


def read_slowly(server: Server) -> tuple[bytes, float, float]:
    """Return what comes of the stored response, the time that it takes, and the longest pause between two reads."""
    began = last = time.monotonic()
    longest_s, body = 0.0, b""
    with ask(server, "large", buffer=1 << 16) as connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200
        with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
            while part := answer.read(1 << 15):
                body += part
                time.sleep(0.05)  # that is what makes it slow
                longest_s, last = max(longest_s, time.monotonic() - last), time.monotonic()
    return body, last - began, max(longest_s, time.monotonic() - last)


def test_slow_reader_gets_the_full_response(big: Server, large: bytes) -> None:
    before = counted(big, "slow_readers")
    body, took_s, longest_s = read_slowly(big)
    while body != large and longest_s > SEND_TIMEOUT_S / 2:  # a busy machine has let this process wait
        before = counted(big, "slow_readers")
        body, took_s, longest_s = read_slowly(big)
    assert body == large
    assert took_s > SEND_TIMEOUT_S, "it took longer than one that takes nothing is given"
    assert counted(big, "slow_readers") == before


@pytest.mark.parametrize("key", ["", "stream"])
def test_unread_stream_is_aborted_and_cancelled(big: Server, key: str) -> None:
    slow, cancelled = counted(big, "slow_readers"), counted(big, "cancelled")
    with ask(big, key, model="slow", stream=True) as connection:
        begun = b""
        while b"completed" not in begun:  # how much comes before the first image depends on the machine
            begun += (part := connection.recv(1 << 12))
            assert part, begun
        wait_until(lambda: counted(big, "slow_readers") == slow + 1, "the stream to be broken off")
        wait_until(lambda: tasks(big) == 0, "every slot free")
        assert counted(big, "cancelled") > cancelled, "it was not waited for to the end"
        read = begun + all_of(connection)
        assert 1 <= read.count(b"event: image_generation.completed") < IMAGES, "the rest was not kept for it"


def test_slow_reader_does_not_delay_same_recording(big: Server) -> None:
    before, done = counted(big, "slow_readers"), counted(big, "done")
    with ask(big, "shared", stream=True, partial_images=1):
        wait_until(lambda: tasks(big) > 0 or counted(big, "done") > done, "its images on their way")
        body, headers = wanted(stream=True, partial_images=1), {"idempotency-key": "shared"}
        replayed = httpx.post(f"{big.base_url}{GENERATE}", content=body, headers=headers, timeout=PATIENCE_S)
        assert replayed.headers["idempotent-replayed"] == "true"
        wait_until(lambda: counted(big, "slow_readers") == before + 1, "the other to be broken off")
    events = [json.loads(line[6:]) for line in replayed.text.splitlines() if line.startswith("data: ")]
    images = {event["index"]: event["b64_json"] for event in events if event["type"] == "image_generation.completed"}
    assert sorted(images) == list(range(IMAGES))
    first = ImageInputs("a seven", SIDE, SIDE, 3, 3.0, 1, "ddim", output_format="jpeg", previews=1)
    assert base64.b64decode(images[0]) == expected_image(first)
