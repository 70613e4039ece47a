"""Source images with a long decoding time: others are served meanwhile, and a disconnect ends the decoding."""

from __future__ import annotations

import re
import signal
import socket
import threading
from typing import Any

import httpx
import psutil

from scripts.harness.balancer import Server, sim
from scripts.harness.processes import PATIENCE_S, wait_until
from tests.conftest import StartServer
from tests.support.images import chunk, png, png_with, scan_bomb

EDIT = "/v1/images/edits"
#: Far more than the limit of CPU time on any machine (about four seconds each), for the image and for the mask.
BOMB = scan_bomb(10_000, 100)
LIMITS = {"max_source_pixels": 100_000_000, "max_pixels": 65536, "min_side": 32}
FIELDS = {"prompt": "a seven", "num_inference_steps": "2", "size": "64x64"}
FILES = {"image": BOMB, "mask": BOMB}


def metric(server: Server, name: str) -> int:
    """Return a sample of `/metrics` by its name and labels; 0 if it is absent."""
    text = httpx.get(f"{server.base_url}/metrics", timeout=PATIENCE_S).text
    found = re.search(rf"^{re.escape(name)} ([0-9.]+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


def edit(server: Server, files: dict[str, bytes], **fields: str) -> httpx.Response:
    return httpx.post(f"{server.base_url}{EDIT}", files=files, data=FIELDS | fields, timeout=PATIENCE_S)


def leave_during_decode(server: Server) -> None:
    """Send a bomb and disconnect while it is decoded."""
    sent = httpx.Request("POST", f"{server.base_url}{EDIT}", files=FILES, data=FIELDS)
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers.items())
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(f"POST {EDIT} HTTP/1.1\r\n{head}\r\n".encode() + sent.read())
        wait_until(lambda: metric(server, 'muster_in_flight{kind="decodes"}') == 1, "the decode")


def test_decoding_is_bounded_and_ends_with_its_client(server: StartServer) -> None:
    started = server({"sim": sim(limits=LIMITS)}, server={"decoders": 1, "decode_timeout_s": 0.2})
    assert not [child for child in psutil.Process(started.balancer.pid).children() if "decoder" in child.name()]
    leave_during_decode(started)
    wait_until(lambda: metric(started, 'muster_in_flight{kind="decodes"}') == 0, "the decode to end with its client")
    while (too_long := edit(started, FILES)).status_code == 503:  # no second of CPU time within 13 s by the clock
        assert too_long.json()["error"]["code"] == "decode_timeout"
    assert too_long.status_code == 400, too_long.text
    assert too_long.json()["error"]["message"] == "Invalid image in 'image': it takes longer than 0.2 s to decode."
    for content, reason in (
        (scan_bomb(64, 101), "more than 100 scans"),
        (png_with(b"", 25_000_000, 1), "a side of at most 16384 pixels is allowed"),
        (png_with(chunk(b"abCd", b"") * 20_000), "more than 16384 chunks"),
    ):
        rejected = edit(started, {"image": content})
        assert rejected.status_code == 400
        assert reason in rejected.json()["error"]["message"]
    assert edit(started, {"image": png()}).is_success
    assert metric(started, 'muster_events_total{event="decodes_too_long"}') == 1
    assert "Traceback" not in started.log("loadbalancer")


def test_signal_to_stop_ends_a_decode(server: StartServer) -> None:
    started = server({"sim": sim(limits=LIMITS)}, server={"decode_timeout_s": 600})
    answers: list[Any] = []
    client = threading.Thread(target=lambda: answers.append(edit(started, FILES)))
    client.start()
    wait_until(lambda: metric(started, 'muster_in_flight{kind="decodes"}') == 1, "the decode")
    children = psutil.Process(started.balancer.pid).children()
    started.balancer.send_signal(signal.SIGTERM)
    assert started.balancer.wait(PATIENCE_S) == 0
    client.join(PATIENCE_S)
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "shutting_down")
    wait_until(lambda: not any(child.is_running() for child in children), "the decoders to end")
    assert "Traceback" not in started.log("loadbalancer")
