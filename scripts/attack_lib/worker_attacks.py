"""What a process does that the balancer takes for a worker."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import httpx
import zmq

from scripts.attack_lib.attack import CUSTOMER, MIB, Attack, BoundBroken, Bounds
from scripts.attack_lib.target import Target
from scripts.harness.processes import PATIENCE_S, ROOT, wait_until
from wire.codec import WorkerEnvelope, decode_for_worker, encode
from wire.inputs import Part
from wire.messages import PROTOCOL, Assign, Capacity, Finished, Hello

_SLOT = 8
_PARTS, _PART_BYTES = 8, 16 * MIB
#: ZeroMQ holds a message until it is complete. Workers are processes of the operator, with keys of their own.
_WHOLE_MESSAGE = Bounds((_PARTS + 1) * _PART_BYTES, CUSTOMER.stall_s)


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
                    self.send(Finished(task.task, task.attempt, (Part("image/png"),)), frames=(image,))
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
    """A message of many large parts is dropped, and its memory is free again."""
    before = target.rss_bytes()
    worker = _FakeWorker(target, "large")
    try:
        worker.send_raw([b"\x90", *[b"\0" * _PART_BYTES] * _PARTS])
        time.sleep(1.0)
    except zmq.Again:
        return "not taken"
    finally:
        worker.close()
    wait_until(lambda: target.rss_bytes() <= before + CUSTOMER.rss_bytes, "the memory of the message", 10.0)
    return "dropped, memory free again"


def _impostor(target: Target) -> str:
    """A process under the name of a live worker, with its slots: bob's requests must not be lost with it."""
    name = target.instance.workers()[0].worker
    answers: list[tuple[int, float]] = []
    stop = threading.Event()

    def ask() -> None:
        with target.client(target.bob) as bob:
            while not stop.is_set():
                started = time.monotonic()
                try:
                    status = bob.post("/predict", json={"prompt": "a"}).status_code
                except httpx.TimeoutException:
                    status = 0
                answers.append((status, time.monotonic() - started))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    worker = _FakeWorker(target, name)
    try:
        time.sleep(2.0)
    finally:
        worker.close()
        time.sleep(1.0)
        stop.set()
        for thread in threads:
            thread.join()
    failed = [status for status, _ in answers if status != 200]
    longest_s = max(wait_s for _, wait_s in answers)
    target.instance.until_workers(2)
    if failed or longest_s > 15.0 * target.stall_factor:
        raise BoundBroken(f"{len(failed)} of {len(answers)} requests failed, the longest took {longest_s:.1f} s")
    return f"{len(answers)} requests, the longest {longest_s:.1f} s"


ATTACKS = [
    Attack("message of 128 MiB in parts", "dropped", _large_message, _WHOLE_MESSAGE),
    Attack("a worker that sends HTML", "not delivered", _wrong_images, CUSTOMER, is_short=False),
    Attack("a worker named as markup", "shown as text", _odd_name, CUSTOMER),
    Attack("a second worker of the same name", "bob served", _impostor, CUSTOMER, is_short=False),
]
