"""Fake workers on the socket of a running balancer, while clients send valid requests."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import random
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import psutil
import zmq
from prometheus_client.parser import text_string_to_metric_families

from configs.paths import worker_address
from scripts.fuzz_lib.frame_generator import FrameGenerator, Frames
from scripts.harness.balancer import Server, sim
from scripts.harness.processes import PATIENCE_S, wait_until
from wire.codec import MalformedFrames, decode_for_worker, decode_from_worker
from wire.inputs import ImageInputs
from wire.messages import PROTOCOL, Assign, ToBalancer
from worker.engines.sim import expected_image

#: Valid requests go to `HONEST`; fake workers, which may get tasks, serve `DECOY`.
HONEST, DECOY = "honest", "decoy"
MODELS: Mapping[str, Any] = {HONEST: sim(), DECOY: sim()}
LIFE = {"heartbeat_s": 0.5, "lost_after_s": 3.0}
#: Allowed growth in a run of any length: buffers for the largest messages, names of rejected workers.
MAX_GROWTH_BYTES = 96 << 20
_PEERS = 8
_ACTIONS_PER_BURST = 60
_STEPS = 8


class FakeWorkers:
    """Peers that connect, send invalid messages and disconnect."""

    def __init__(self, address: str, seed: int) -> None:
        """`address` is the worker socket of the balancer."""
        self._address = address
        self._random = random.Random(seed)
        self._generator = FrameGenerator(seed, ToBalancer, [DECOY, "nowhere", "", "\ufffd"])
        self._context = zmq.Context()
        self._peers: dict[bytes, zmq.Socket[bytes]] = {}
        #: Attempts of the tasks that were assigned to any peer.
        self._tasks: dict[str, int] = {}
        self.sent = 0
        #: Number of malformed messages among them.
        self.malformed = 0

    def act(self) -> None:
        name = self._peer()
        self._receive()
        match self._random.choices(("some", "join", "task", "beyond", "raw"), (50, 15, 30, 1, 1))[0]:
            case "some":
                self._send(name, self._generator.random_frames())
            case "join":
                self._join(name)
            case "task":
                self._send(name, self._task_message())
            case "beyond":
                self._send(name, self._generator.oversized())
            case "raw":
                self._raw()

    def close(self) -> None:
        """Disconnect when everything is sent."""
        for peer in self._peers.values():
            peer.close()
        self._context.term()

    def _peer(self) -> bytes:
        """Return the name of an existing or new peer; some names are not text."""
        if len(self._peers) < _PEERS or self._random.random() < 0.05:
            odd = self._random.random() < 0.2
            name = b"\xff" + self._random.randbytes(8) if odd else b"intruder-%d" % self.sent
            peer = self._context.socket(zmq.DEALER)
            peer.setsockopt(zmq.ROUTING_ID, name)
            peer.setsockopt(zmq.SNDTIMEO, int(1000 * PATIENCE_S))
            peer.connect(self._address)
            self._peers[name] = peer
            self._generator.names.append(name.decode("utf-8", "replace"))
        name = self._random.choice(list(self._peers))
        if len(self._peers) > _PEERS:
            leaving = self._random.choice([each for each in self._peers if each != name])
            self._peers.pop(leaving).close()
        return name

    def _join(self, name: bytes) -> None:
        """Register as a worker does, not always completely."""
        fields = {"protocol": PROTOCOL, "worker": name.decode("utf-8", "replace"), "model": DECOY}
        self._send(name, self._generator.message("Hello", **fields))
        if self._random.random() < 0.7:
            self._send(name, self._generator.message("Capacity", slots=self._random.choice((1, 4, 4, 1000, 2**31 - 1))))

    def _task_message(self) -> Frames:
        """Return a message about an assigned task, for its attempt or another."""
        if not self._tasks:
            return self._generator.message()
        task = self._random.choice(list(self._tasks))
        attempt = self._tasks[task] + self._random.choice((0, 0, 0, 1, -1))
        kind = self._random.choice(("Started", "Progress", "Progress", "Chunk", "Finished", "Failed", "Preempted"))
        return self._generator.message(kind, task=task, attempt=max(attempt, 0))

    def _receive(self) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(zmq.Again):
                while True:
                    for message, _ in decode_for_worker(peer.recv_multipart(zmq.DONTWAIT)):
                        for task in message.tasks if isinstance(message, Assign) else ():
                            self._tasks[task.task] = task.attempt
                            self._generator.names.append(task.task)
        while len(self._tasks) > 64:
            del self._tasks[next(iter(self._tasks))]

    def _send(self, name: bytes, frames: Frames) -> None:
        """Raises `zmq.Again` where the balancer does not take it."""
        if not frames:
            return
        try:
            decode_from_worker(frames)
        except MalformedFrames:
            self.malformed += 1
        self._peers[name].send_multipart(frames)
        self.sent += 1

    def _raw(self) -> None:
        """Bytes that are no ZeroMQ; or a ZeroMQ that announces a frame as large as a disk."""
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
        ready = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
        huge = b"\x02" + (2**60).to_bytes(8, "big")
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.connect(self._address.removeprefix("ipc://"))
            connection.sendall(self._random.choice((self._random.randbytes(300), greeting + ready + huge + bytes(999))))


class BalancerFuzzer:
    """A balancer, its fake workers, and honest clients that must not be affected by them."""

    def __init__(self, server: Server, seed: int) -> None:
        """The server serves `MODELS`, and has a worker for `HONEST` alone."""
        self._server = server
        self._random = random.Random(seed)
        self._http = httpx.Client(base_url=server.base_url, timeout=PATIENCE_S)
        self._pool = concurrent.futures.ThreadPoolExecutor(4)
        self._decoys: list[concurrent.futures.Future[int]] = []
        self.fake_workers = FakeWorkers(worker_address(server.data_dir), seed)
        self.answered = 0
        self.faults: list[str] = []
        self._before = self._events()
        self._rss = 0

    def burst(self) -> None:
        """Some time of it. The first one shows what the balancer weighs."""
        self._decoys = [each for each in self._decoys if not each.done()]
        while len(self._decoys) < 4:
            self._decoys.append(self._pool.submit(self._decoy, self._random.randrange(2**31)))
        for _ in range(_ACTIONS_PER_BURST):
            self.fake_workers.act()
        self._ask(self._random.randrange(2**31))
        self._rss = self._rss or self._rss_bytes()

    def end(self) -> dict[str, int]:
        """Disconnect and check what remains; errors are added to `faults`."""
        for each in concurrent.futures.as_completed(self._decoys, PATIENCE_S):
            each.result()
        self._pool.shutdown()
        self.fake_workers.close()
        with self._record_failure("every malformed message is counted"):
            wait_until(lambda: self._grown()["malformed"] >= self.fake_workers.malformed, "the last message")
        with self._record_failure("the fake workers and their tasks are removed"):
            wait_until(lambda: self._remaining() == [1, 0, 0], "the last fake worker to be removed")
        self._ask(0)
        counted = {name: self._grown()[name] for name in ("malformed", "stale", "unknown_worker", "workers_refused")}
        grown = max(self._rss_bytes() - self._rss, 0)
        for wrong, text in (
            # More, where noise on the socket happened to be ZeroMQ of some version.
            (counted["malformed"] < self.fake_workers.malformed, f"{self.fake_workers.malformed} were none: {counted}"),
            (self._grown()["unhandled"], "some message was not handled"),
            ("Traceback" in self._server.log("loadbalancer"), "the log has a traceback"),
            (grown > MAX_GROWTH_BYTES, f"it grew by {grown >> 20} MiB"),
        ):
            self.faults += [text] if wrong else []
        self._http.close()
        return {"sent": self.fake_workers.sent, "answered": self.answered, "grown_bytes": grown, **counted}

    def _ask(self, seed: int) -> None:
        body = {"model": HONEST, "prompt": "a seven", "seed": seed, "n": 2, "num_inference_steps": _STEPS}
        answer = self._http.post("/v1/images/generations", json=body)
        wanted = [ImageInputs("a seven", 64, 64, _STEPS, 3.0, seed + i, "ddim") for i in range(2)]
        if answer.status_code != 200:
            self.faults.append(f"a valid request was answered {answer.status_code}: {answer.text[:200]}")
        elif [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]] != list(
            map(expected_image, wanted)
        ):
            self.faults.append("a valid request got a wrong image")
        self.answered += 1

    def _decoy(self, seed: int) -> int:
        body = {"model": DECOY, "prompt": "a seven", "seed": seed, "timeout_s": 3, "partial_images": seed % 4}
        url = f"{self._server.base_url}/v1/images/generations"
        with httpx.stream("POST", url, json=body | {"stream": bool(seed % 2)}, timeout=PATIENCE_S) as answer:
            return len(answer.read())

    def _events(self) -> Counter[str]:
        families = text_string_to_metric_families(self._http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == "muster_events_total"]
        return Counter({sample.labels["event"]: int(sample.value) for sample in samples})

    def _grown(self) -> Counter[str]:
        return self._events() - self._before

    def _remaining(self) -> list[int]:
        """Return the numbers of workers, queued images and running images."""
        now = self._server.snapshot()
        return [
            len(now.workers),
            *(sum(getattr(model, name) for model in now.models) for name in ("queued", "running")),
        ]

    def _rss_bytes(self) -> int:
        return int(psutil.Process(self._server.balancer.pid).memory_info().rss)

    @contextlib.contextmanager
    def _record_failure(self, what: str) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            self.faults.append(f"failed: {what}; {error}; left: {self._remaining()}, counted: {dict(self._grown())}")
