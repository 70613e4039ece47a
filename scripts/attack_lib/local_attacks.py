"""What happens on the machine: torn files, odd workers, readers of the output that end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import zmq

from configs.paths import keys_file, run_dir
from scripts.attack_lib.attack import CUSTOMER, MIB, Attack, BoundBroken
from scripts.attack_lib.target import Target
from scripts.harness.processes import PATIENCE_S, ROOT, free_port, wait_until
from wire.codec import WorkerEnvelope, decode_for_worker, encode
from wire.messages import PROTOCOL, Assign, Capacity, Finished, Hello

_SLOT = 8


def _restart_balancer(target: Target) -> None:
    """Kill the balancer; the controller starts another, or is refused."""
    old = target.balancer_pid
    if old is not None:
        os.kill(old, signal.SIGKILL)
    deadline = time.monotonic() + 8.0
    while time.monotonic() < deadline:
        try:
            if (
                target.balancer_pid not in (old, None)
                and httpx.get(f"{target.instance.url}/healthz", timeout=5).is_success
            ):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)


def _statuses_without_key(target: Target) -> dict[str, int | None]:
    """Ask without credentials for what needs a key. None: no answer."""
    found: dict[str, int | None] = {}
    for path in ("/internal/snapshot", "/v1/models", "/v1/jobs"):
        try:
            found[path] = httpx.get(f"{target.instance.url}{path}", timeout=10).status_code
        except httpx.TransportError:
            found[path] = None
    return found


def _closed(target: Target) -> str:
    found = _statuses_without_key(target)
    if wrong := {path: status for path, status in found.items() if status not in (None, 401, 403)}:
        raise BoundBroken(f"open without a key: {wrong}")
    return ", ".join(sorted({str(status or "no answer") for status in found.values()}))


def _until_served(target: Target) -> None:
    wait_until(target.is_served, "an honest request after the file is back")


def _torn(name: str, content: bytes | None) -> Callable[[Target], str]:
    """Replace the file by this content, or delete it, and let the balancer start again."""

    def run(target: Target) -> str:
        file = keys_file(target.folder, None) if name == "keys" else run_dir(target.folder) / name
        whole = file.read_bytes()
        try:
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
            _restart_balancer(target)
            return _closed(target)
        finally:
            file.write_bytes(whole)
            _restart_balancer(target)
            _until_served(target)

    return run


class _FakeWorker:
    """A worker of the model `m` by its messages."""

    def __init__(self, target: Target, name: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.ROUTING_ID, name.encode())
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDTIMEO, 2000)
        self._socket.connect(target.worker_address)
        self.send(Hello(PROTOCOL, name, "m", "sim:99", os.getpid()), Capacity(_SLOT))

    def send(self, *messages: Hello | Capacity | Finished, frames: tuple[bytes, ...] = ()) -> None:
        self._socket.send_multipart(encode([WorkerEnvelope(message, list(frames)) for message in messages]))

    def answer_all(self, image: bytes, seconds: float) -> int:
        """Answer every task with these bytes. Return how many there were."""
        deadline, count = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            if not self._socket.poll(50):
                continue
            for message, _ in decode_for_worker(self._socket.recv_multipart()):
                for task in message.tasks if isinstance(message, Assign) else ():
                    self.send(Finished(task.task, task.attempt), frames=(image,))
                    count += 1
        return count

    def send_raw(self, parts: list[bytes]) -> None:
        self._socket.send_multipart(parts)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def _wrong_images(target: Target) -> str:
    """A worker answers with HTML: no client gets it as an image."""
    worker = _FakeWorker(target, "liar")
    try:
        found: list[httpx.Response] = []

        def ask() -> None:
            with target.client(target.bob) as bob:
                found.extend(bob.post("/predict", json={"prompt": "a"}) for _ in range(4))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        count = worker.answer_all(b"<html>", 2.0)
        for thread in threads:
            thread.join()
    finally:
        worker.close()
    false = [answer for answer in found if answer.status_code == 200 and b"iVBOR" not in answer.content]
    if false:
        raise BoundBroken(f"{len(false)} of {len(found)} clients got HTML as an image")
    return f"{count} wrong results, none delivered"


def _odd_name(target: Target) -> str:
    """A worker's name is markup and terminal escapes: `status` shows it as text."""
    worker = _FakeWorker(target, "[/bold]\x1b]0;x\x07")
    try:
        time.sleep(1.0)
        command = [sys.executable, "-m", "controller", "status", "--data-dir", str(target.folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False)
    finally:
        worker.close()
    if done.returncode != 0 or b"\x1b]0" in done.stdout:
        raise BoundBroken(f"status ended with {done.returncode}: {done.stderr[-100:]!r}")
    return "status shows it"


def _large_message(target: Target) -> str:
    """A message of many large parts."""
    worker = _FakeWorker(target, "large")
    try:
        worker.send_raw([b"\x90", *[b"\0" * (16 * MIB)] * 8])
        time.sleep(1.5)
    except zmq.Again:
        return "not taken"
    finally:
        worker.close()
    return "dropped"


def _output_ends(target: Target) -> str:
    """The reader of a server's output ends; the server serves on."""
    folder = Path(str(target.folder) + "-piped")
    folder.mkdir(exist_ok=True)
    port = free_port()
    options = ["--data-dir", str(folder), "--port", str(port), "--min-workers", "1"]
    config = folder / "muster.yaml"
    config.write_text("models: {m: {engine: sim}}\n")
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "controller", "--config", str(config), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=writing, stderr=writing, start_new_session=True) as process:
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)

        def ready() -> bool:
            if process.poll() is not None:
                raise BoundBroken(f"the server ended with {process.returncode}")
            try:
                return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).is_success
            except httpx.TransportError:
                return False

        try:
            wait_until(ready, "a ready server without a reader")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)
    return f"served on, ended with {process.returncode}"


ATTACKS = [
    Attack("message of 128 MiB in parts", "bounded", _large_message, CUSTOMER),
    Attack("a worker that sends HTML", "not delivered", _wrong_images, CUSTOMER),
    Attack("a worker named as markup", "shown as text", _odd_name, CUSTOMER),
    Attack("reader of the output ends", "serves on", _output_ends, CUSTOMER, is_short=False),
    Attack("empty internal token, restart", "401", _torn("internal.token", b""), CUSTOMER, True, False),
    Attack(
        "torn internal token, restart",
        "401",
        _torn("internal.token", b"abc"),
        CUSTOMER,
        is_short=False,
        keeps_process=False,
    ),
    Attack("keys deleted, restart", "closed", _torn("keys", None), CUSTOMER, True, False),
    Attack("keys emptied, restart", "closed", _torn("keys", b""), CUSTOMER, False, False),
    Attack(
        "keys cut short, restart",
        "closed",
        _torn("keys", b"keys:\n  al"),
        CUSTOMER,
        is_short=False,
        keeps_process=False,
    ),
]
