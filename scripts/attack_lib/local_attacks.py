"""What happens on the machine: torn files, signals, readers of the output that end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from configs.paths import keys_file, run_dir
from scripts.attack_lib.attack import CUSTOMER, Attack, BoundBroken
from scripts.attack_lib.target import Target
from scripts.harness.balancer import sim
from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S, ROOT, child_process, free_port, wait_until


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
    with child_process(command, cwd=ROOT, stdout=writing, stderr=writing, start_new_session=True) as process:
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


def _signal_to_all(target: Target) -> str:
    """SIGTERM to every process of a server at once: the requests that run and wait are answered."""
    config = {"models": {"m": sim(t0_s=0.02, t1_s=0.0, max_batch_size=1, scaling={"min_workers": 2})}}
    instance = Instance(Path(f"{target.folder}-signal"), config)
    statuses: list[int] = []

    def ask() -> None:
        body = {"prompt": "a", "num_inference_steps": 40}
        statuses.append(httpx.post(f"{instance.url}/predict", json=body, timeout=PATIENCE_S).status_code)

    try:
        instance.until(instance.is_ready, "a ready server")
        instance.until_workers(2)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        instance.until(lambda: all(worker.running for worker in instance.workers()), "a task on each worker")
        for process in instance.children():
            process.terminate()
        instance.process.terminate()
        for thread in threads:
            thread.join()
        code = instance.process.wait(PATIENCE_S)
    finally:
        instance.end()
    if statuses != [200] * 4 or code:
        raise BoundBroken(f"answered {statuses}, the controller ended with {code}")
    return "4 of 4 answered"


ATTACKS = [
    Attack("reader of the output ends", "serves on", _output_ends, CUSTOMER, is_short=False),
    Attack("SIGTERM to all processes", "all answered", _signal_to_all, CUSTOMER, is_short=False),
    Attack("empty internal token, restart", "401", _torn("internal.token", b""), CUSTOMER, True, False),
    Attack(
        "torn internal token, restart",
        "401",
        _torn("internal.token", b"abc"),
        CUSTOMER,
        is_short=False,
        keeps_process=False,
    ),
    Attack("keys deleted, restart", "closed", _torn("keys", None), CUSTOMER, False, False),
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
