"""In-flight counts of an idle server, and its stop while a client does not read."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx

from scripts.harness.balancer import Server, sim
from scripts.harness.processes import PATIENCE_S, stop, wait_until
from tests.conftest import StartServer

SIDE, IMAGES = 2048, 48
GENERATE = "/v1/images/generations"


def samples(server: Server, name: str, label: str) -> dict[str, float]:
    """Return the values of a metric by one of its labels."""
    lines = httpx.get(f"{server.base_url}/metrics", timeout=PATIENCE_S).text.splitlines()
    own = [line.rpartition(" ") for line in lines if line.startswith(f"{name}{{")]
    return {sample_name.split(f'{label}="')[1].split('"')[0]: float(value) for sample_name, _, value in own}


def test_in_flight_metrics_return_to_zero(server: StartServer) -> None:
    running = server({"sim": sim()}, 1, life={"heartbeat_s": 30})  # a stopped worker gets tasks for three heartbeats
    body = {"prompt": "a seven", "num_inference_steps": 40}
    books = {
        "tasks",
        "listeners",
        "slots",
        "requests",
        "jobs",
        "calls",
        "recordings",
        "decodes",
        "body_bytes",
        "response_bytes",
    }

    def post(key: str | None) -> int:
        headers = {"idempotency-key": key} if key else {}
        url = f"{running.base_url}/predict"
        return httpx.post(url, json=body, headers=headers, timeout=PATIENCE_S).status_code

    def counts() -> dict[str, float]:
        return samples(running, "muster_in_flight", "kind")

    with ThreadPoolExecutor() as pool:
        expected = {
            "tasks": 5,
            "listeners": 5,
            "slots": 4,
            "requests": 3,
            "jobs": 1,
            "calls": 3,
            "recordings": 2,
            "decodes": 0,
            "body_bytes": 0,  # a queued request holds no body
            "response_bytes": 0,
        }
        with running.stopped():
            sent = [pool.submit(post, key) for key in ("a", "b", None)]
            job = {"path": GENERATE, "body": body | {"n": 2}}
            assert httpx.post(f"{running.base_url}/v1/jobs", json=job, timeout=PATIENCE_S).status_code == 202
            wait_until(lambda: counts() == expected, f"the books to say {expected}")
        assert [answer.result() for answer in sent] == [200] * 3
    wait_until(lambda: counts() == dict.fromkeys(books, 0), "empty books")


def test_model_named_as_on_a_hub_is_served(server: StartServer) -> None:
    name = "Stability-AI/SD-1.5_turbo"
    running = server({name: sim()}, 1)
    for path in (name, name.replace("/", "%2F")):
        assert httpx.get(f"{running.base_url}/v1/models/{path}", timeout=PATIENCE_S).json()["id"] == name
    # The specification reads `live`, and the client of KServe `ready`.
    ready = httpx.get(f"{running.base_url}/v2/health/ready", timeout=PATIENCE_S)
    assert (ready.status_code, ready.json()) == (200, {"live": True, "ready": True})
    body = {"prompt": "a seven", "model": name}
    assert httpx.post(f"{running.base_url}{GENERATE}", json=body, timeout=PATIENCE_S).status_code == 200
    metrics = httpx.get(f"{running.base_url}/metrics", timeout=PATIENCE_S).text
    assert f'model="{name}"' in metrics


def test_stop_aborts_clients_that_do_not_read(server: StartServer) -> None:
    model = sim(limits={"max_pixels": SIDE * SIDE}, max_batch_size=16)
    running = server({"sim": model}, 1, server={"max_n": IMAGES, "shutdown_s": 1})
    wanted = {"prompt": "a seven", "n": IMAGES, "size": f"{SIDE}x{SIDE}", "num_inference_steps": 2, "stream": True}
    content = json.dumps(wanted | {"output_format": "jpeg"}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", running.port))
        head = f"POST {GENERATE} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        wait_until(lambda: samples(running, "muster_events_total", "event").get("done", 0) == IMAGES, "all images")
        assert samples(running, "muster_in_flight", "kind")["requests"] == 1, "nobody has read them"
        assert stop(running.balancer) == 0
    assert "Traceback" not in running.log("loadbalancer")
    assert "ERROR" not in running.log("loadbalancer")
