"""A balancer that has no more files to open: nothing is lost, workers still connect, and it recovers."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
from pathlib import Path

import httpx
import msgspec

from configs.paths import internal_token
from loadbalancer.access import keys_cli
from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, free_port, wait_until
from wire.snapshot import Snapshot

#: Begins a form whose file is on the disk by now, and never ends it.
UPLOAD = (
    b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + b"x" * 400_000
)
FILES, UPLOADS = 128, 64
DRAW = {"prompt": "a seven"}
SERVER = {"keep_alive_s": 3600}


def begin_upload(server: Server, stack: contextlib.ExitStack) -> socket.socket:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
    with contextlib.suppress(ConnectionError):  # refused: it is read below
        connection.sendall(UPLOAD)
    return connection


def lasting_client(server: Server) -> httpx.Client:
    """Return a client whose connection stays open however long it is idle: there may be no file for another."""
    limits = httpx.Limits(keepalive_expiry=None)
    return httpx.Client(base_url=server.base_url, timeout=PATIENCE_S, limits=limits)


def answer_of(connection: socket.socket) -> bytes:
    """Return what was answered to an upload; nothing if its connection was closed."""
    with contextlib.suppress(ConnectionError):
        return connection.recv(4096)
    return b""


def start_worker(server: Server, http: httpx.Client) -> None:
    """Start one more worker, and wait until it has connected. Asks over the connection that is open already."""
    name = server.start_worker("sim")
    headers = {"authorization": f"Bearer {internal_token(server.data_dir)}"}

    def has_connected() -> bool:
        assert server.balancer.poll() is None, server.logs()
        assert server.workers[name].poll() is None, server.logs()
        content = http.get("/internal/snapshot", headers=headers).content
        return name in [each.worker for each in msgspec.json.decode(content, type=Snapshot).workers]

    wait_until(has_connected, "the worker")


def test_workers_connect_and_requests_are_served_while_uploads_take_all_files(tmp_path: Path) -> None:
    with (
        running(tmp_path, {"sim": sim()}, 1, server=SERVER | {"min_body_rate": 0}) as server,
        contextlib.ExitStack() as stack,
    ):
        http = stack.enter_context(lasting_client(server))
        assert http.post("/predict", json=DRAW).status_code == 200
        resource.prlimit(server.balancer.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        uploads = [begin_upload(server, stack) for _ in range(UPLOADS)]
        refused: list[socket.socket] = []

        def is_full() -> bool:
            refused[:] = select.select(uploads, [], [], 0)[0]
            return bool(refused)

        wait_until(is_full, "an upload without a file")
        answers = [answer_of(each) for each in refused]
        assert any(b"503 " in each and b"too_many_open_files" in each for each in answers) or not all(answers)
        assert not any(b"storage_full" in each for each in answers)

        start_worker(server, http)
        assert http.post("/predict", json=DRAW).status_code == 200
        for upload in uploads:
            upload.close()

        def has_recovered() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.post(f"{server.base_url}/predict", json=DRAW, timeout=PATIENCE_S).status_code == 200
            return False

        wait_until(has_recovered, "an answer over a new connection")
        assert server.balancer.poll() is None


def test_peers_without_a_key_leave_files_for_workers(tmp_path: Path) -> None:
    """ZeroMQ accepts any number of them at `workers.listen`, and without a file it aborts when a worker connects."""
    port = free_port()
    assert keys_cli.main(["--data-dir", str(tmp_path), "add-worker", "far", str(tmp_path / "far.key")]) == 0
    life = {"listen": f"tcp://127.0.0.1:{port}"}
    with running(tmp_path, {"sim": sim()}, 0, life=life, server=SERVER) as server, contextlib.ExitStack() as stack:
        http = stack.enter_context(lasting_client(server))
        assert http.get("/healthz").status_code == 200
        resource.prlimit(server.balancer.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        peers = []
        for _ in range(FILES):
            with contextlib.suppress(TimeoutError):  # while the system's queue of connections is full
                peers.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1.0)))
        wait_until(lambda: "too many open files" in server.log("loadbalancer"), "the refusal of a peer")
        start_worker(server, http)
        assert http.post("/predict", json=DRAW).status_code == 200
