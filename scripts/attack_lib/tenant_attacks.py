"""Attacks of one customer on another."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx

from scripts.attack_lib.attack import CUSTOMER, Attack, BoundBroken
from scripts.attack_lib.raw_client import HOST, connect
from scripts.attack_lib.target import JOBS as JOB_SETTINGS
from scripts.attack_lib.target import Target
from scripts.harness.processes import wait_until

_JOB: dict[str, Any] = {"path": "/predict", "body": {"prompt": "a"}}
#: It runs for a minute unless it is cancelled.
_LONG_JOB: dict[str, Any] = {
    "path": "/v1/images/generations",
    "body": {"prompt": "a", "num_inference_steps": 1000, "n": 10},
}


def _cancel_all(client: httpx.Client) -> None:
    while jobs := client.get("/v1/jobs", params={"limit": 100}).json()["data"]:
        for job in jobs:
            client.delete(f"/v1/jobs/{job['id']}")


@contextlib.contextmanager
def _both(target: Target) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    with target.client(target.alice) as alice, target.client(target.bob) as bob:
        try:
            yield alice, bob
        finally:
            for client in (alice, bob):
                _cancel_all(client)


def _expect(answer: httpx.Response, status: int, what: str) -> None:
    if answer.status_code != status:
        raise BoundBroken(f"{what}: {answer.status_code} {answer.text[:100]}")


def _fill_jobs(target: Target) -> str:
    """Alice has as many unfinished jobs as she gets; bob gets one, too."""
    with _both(target) as (alice, bob):
        count = JOB_SETTINGS["max_unfinished"] + 5
        taken = Counter(alice.post("/v1/jobs", json=_LONG_JOB).status_code for _ in range(count))
        if set(taken) - {202, 429}:
            raise BoundBroken(f"alice's jobs: {dict(taken)}")
        _expect(bob.post("/v1/jobs", json=_JOB), 202, "bob's job")
    return f"alice {dict(taken)}, bob 202"


def _evict(target: Target) -> str:
    """Alice's kept answers do not push out bob's finished job."""
    with _both(target) as (alice, bob):
        job = bob.post("/v1/jobs", json=_JOB).json()["id"]
        wait_until(lambda: bob.get(f"/v1/jobs/{job}/result").status_code == 200, "bob's result")
        for number in range(80):
            body = {"prompt": "a", "num_inference_steps": 1, "seed": number}
            alice.post("/v1/images/generations", json=body, headers={"idempotency-key": f"flood-{number}"})
        _expect(bob.get(f"/v1/jobs/{job}/result"), 200, "bob's result")
    return "bob's result is there"


def _slow_webhooks(target: Target) -> str:
    """Alice's receivers never answer; bob's hears of his job at once."""
    heard = threading.Event()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/slow":
                time.sleep(JOB_SETTINGS["webhook_timeout_s"] + 1)
                return
            heard.set()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            del args

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    quick = {"path": "/predict", "body": {"prompt": "a", "num_inference_steps": 1}}
    try:
        with _both(target) as (alice, bob):
            for _ in range(60):
                answer = alice.post("/v1/jobs", json=quick | {"webhook": {"url": f"{url}/slow"}})
                if answer.status_code == 429:
                    time.sleep(0.1)
            time.sleep(0.5)
            started = time.monotonic()
            _expect(bob.post("/v1/jobs", json=quick | {"webhook": {"url": f"{url}/quick"}}), 202, "bob's job")
            limit_s = 4.0 * target.stall_factor
            if not heard.wait(limit_s):
                raise BoundBroken(f"bob's webhook was not called within {limit_s:.0f} s")
        return f"bob's webhook after {time.monotonic() - started:.1f} s"
    finally:
        server.shutdown()
        server.server_close()


def _unread_streams(target: Target) -> str:
    """A hundred event streams and results of a finished job that nobody reads."""
    with _both(target) as (alice, _):
        body = {"prompt": "a", "num_inference_steps": 1, "n": 10, "size": "256x256"}
        job = alice.post("/v1/jobs", json={"path": "/v1/images/generations", "body": body}).json()["id"]
        wait_until(lambda: alice.get(f"/v1/jobs/{job}/result").status_code == 200, "a result")
        with contextlib.ExitStack() as opened:
            for number in range(100):
                connection = opened.enter_context(connect(target.port, receive_bytes=4096))
                what = ("events", "result")[number % 2].encode()
                path = b"GET /v1/jobs/%b/%b HTTP/1.1\r\n%bAuthorization: Bearer %b\r\n\r\n"
                connection.sendall(path % (job.encode(), what, HOST, target.alice.encode()))
            time.sleep(1.5)
    return "100 streams"


def _others_jobs(target: Target) -> str:
    """Alice knows the id of bob's job, and gets nothing."""
    with _both(target) as (alice, bob):
        job = bob.post("/v1/jobs", json=_JOB).json()["id"]
        for method, path in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")):
            _expect(alice.request(method, f"/v1/jobs/{job}{path}"), 404, f"{method} of bob's job")
    return "404 each"


def _limitless_reads(target: Target) -> str:
    """Listing as fast as it can does not slow bob's job down."""
    stop = threading.Event()

    def list_jobs() -> None:
        with target.client(target.alice) as alice:
            while not stop.is_set():
                alice.get("/v1/jobs", params={"limit": 100})

    threads = [threading.Thread(target=list_jobs) for _ in range(8)]
    with _both(target) as (_, bob):
        for thread in threads:
            thread.start()
        try:
            started = time.monotonic()
            _expect(bob.post("/v1/jobs", json=_JOB), 202, "bob's job")
            took_s = time.monotonic() - started
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    if took_s > 1.0 * target.stall_factor:
        raise BoundBroken(f"bob's job was taken after {took_s:.1f} s")
    return f"bob's job taken after {1000 * took_s:.0f} ms"


ATTACKS = [
    Attack("all jobs taken by one owner", "bob 202", _fill_jobs, CUSTOMER),
    Attack("kept answers against finished jobs", "bob's result stays", _evict, CUSTOMER),
    Attack("receivers that do not answer", "bob's webhook in time", _slow_webhooks, CUSTOMER, is_short=False),
    Attack("100 streams that nobody reads", "bounded", _unread_streams, CUSTOMER),
    Attack("jobs of another owner", "404", _others_jobs, CUSTOMER),
    Attack("eight listers", "bob served", _limitless_reads, CUSTOMER, is_short=False),
]
