"""A fake balancer that sends random messages to a running worker, with valid tasks in between."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml
import zmq

from configs.paths import worker_address
from scripts.fuzz_lib.frame_generator import FrameGenerator, Frames
from scripts.harness.balancer import sim
from scripts.harness.processes import PATIENCE_S, Process, launch
from wire.codec import BalancerEnvelope, MalformedFrames, decode_for_worker, decode_from_worker, encode
from wire.inputs import ImageInputs
from wire.messages import Ack, Assign, Assignment, Cancel, Finished, Heartbeat, Hello, Reject, ToWorker

MODELS: Mapping[str, Any] = {"m": sim(max_batch_size=8)}
MAX_GROWTH_BYTES = 96 << 20
_ACTIONS_PER_BURST = 40
#: Larger valid assignments are not sent, because they would only take long.
_MAX_PIXELS, _MAX_STEPS, _MAX_TASKS = 256 * 256, 300, 20


class WorkerFuzzer:
    """The fake balancer of one worker."""

    def __init__(self, folder: Path, seed: int, models: Mapping[str, Any] = MODELS) -> None:
        """Start the worker, which serves the first of `models` on a CPU."""
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump({"models": dict(models), "workers": {"heartbeat_s": 0.2, "lost_after_s": 5}}))
        self._folder = folder
        self._random = random.Random(seed)
        self._generator = FrameGenerator(seed, ToWorker, ["t1", "t2", "t3", "w", "ddim", "euler"])
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDTIMEO, int(1000 * PATIENCE_S))
        self._socket.bind(worker_address(folder))
        self._worker: Process = launch("worker", folder, "--config", str(config), "--id", "w", log="w")
        #: Images of the valid tasks, by task.
        self._drawn: dict[str, bytes] = {}
        self._heartbeat: Heartbeat | None = None
        self._rss = 0
        self.sent = self.malformed = self.answered = 0
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self._until(lambda: self._heartbeat is not None, "the worker's first heartbeat")
        self._reference = self._draw("before")

    def burst(self) -> None:
        """Send random messages, then a valid task. The first call records the memory in use."""
        for _ in range(_ACTIONS_PER_BURST):
            frames = self._generator.oversized() if self._random.random() < 0.01 else self._generator.random_frames()
            if _is_harmless(frames):
                self._send(frames)
            self._receive()
        if self._draw(f"honest-{self.sent}") != self._reference:
            self.faults.append("a valid task returned a different image")
        self.answered += 1
        self._send(encode([BalancerEnvelope(Cancel(list(self._generator.names)))]))  # the random tasks
        self._rss = self._rss or self._rss_bytes()

    def end(self) -> dict[str, int]:
        """Wait until the worker is idle and check it; errors are added to `faults`."""
        with self._record_failure():
            self._until(self._idle, "the worker to be idle and to have counted every malformed message")
        grown = max(self._rss_bytes() - self._rss, 0)
        if grown > MAX_GROWTH_BYTES:
            self.faults.append(f"it grew by {grown >> 20} MiB")
        self.kill()
        return {"sent": self.sent, "malformed": self.malformed, "answered": self.answered, "grown_bytes": grown}

    def kill(self) -> None:
        """Kill the worker. Idempotent."""
        if self._worker.poll() is None:
            self._worker.kill()
        self._worker.wait(PATIENCE_S)
        if not self._socket.closed:
            self._socket.close(0)
            self._context.term()

    def _idle(self) -> bool:
        assert self._heartbeat is not None
        return self._heartbeat.running == 0 and self._heartbeat.counters.malformed == self.malformed

    def _draw(self, name: str) -> bytes:
        """Return the image of a constant task."""
        inputs = ImageInputs("a seven", 64, 64, 8, 3.0, 7, "ddim", reproducible=True)
        self._send(encode([BalancerEnvelope(Assign([Assignment(name, 1, inputs)]))]))
        self._drawn[name] = b""
        self._until(lambda: bool(self._drawn[name]), "the image of a valid task")
        return self._drawn.pop(name)

    def _send(self, frames: Frames | list[Any]) -> None:
        """Raises `zmq.ZMQError` if the worker does not receive it or has exited."""
        if not frames:
            return
        try:
            decode_for_worker(frames)
        except MalformedFrames:
            self.malformed += 1
        self._socket.send_multipart([b"w", *frames])
        self.sent += 1

    def _receive(self, patience_s: float = 0.0) -> None:
        if not self._socket.poll(math.ceil(1000 * patience_s)):
            return
        with contextlib.suppress(zmq.Again):
            while True:
                for message, frames in decode_from_worker(self._socket.recv_multipart(zmq.DONTWAIT)[1:]):
                    self.answers[type(message).__name__] += 1
                    if isinstance(message, Finished) and message.task in self._drawn:
                        self._drawn[message.task] = bytes(frames[0])
                    elif isinstance(message, Heartbeat):
                        self._heartbeat = message
                    if isinstance(message, Heartbeat | Hello):
                        self._socket.send_multipart([b"w", *encode([BalancerEnvelope(Ack(0.2))])])

    def _until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            log = self._folder / "w.log"
            assert self._worker.poll() is None, f"the worker ended with {self._worker.returncode}:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"no {what}; {self._heartbeat}\n{log.read_text()[-2000:]}"
            self._receive(0.05)

    def _rss_bytes(self) -> int:
        return int(psutil.Process(self._worker.pid).memory_info().rss)

    @contextlib.contextmanager
    def _record_failure(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            self.faults.append(str(error))


def _is_harmless(frames: Frames) -> bool:
    """Return whether the frames neither end the worker nor cause very large tasks."""
    with contextlib.suppress(MalformedFrames):
        for message, _ in decode_for_worker(frames):
            if isinstance(message, Reject) and message.fatal:
                return False
            if isinstance(message, Assign) and (len(message.tasks) > _MAX_TASKS or any(map(_is_large, message.tasks))):
                return False
    return True


def _is_large(task: Assignment) -> bool:
    return task.inputs.shape.volume > _MAX_PIXELS or task.inputs.steps > _MAX_STEPS
