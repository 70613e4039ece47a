"""A running worker whose balancer has lost its mind: it says anything, and honest tasks in between are done right."""

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
from scripts.fuzz_lib.frame_generator import FrameMaker, Frames
from scripts.harness.balancer import sim
from scripts.harness.processes import PATIENCE_S, Process, launch
from wire.codec import BalancerEnvelope, MalformedFrames, decode_for_worker, decode_from_worker, encode
from wire.messages import (
    Ack,
    Assign,
    Assignment,
    Cancel,
    Finished,
    Heartbeat,
    Hello,
    ImageInputs,
    Reject,
    ToWorker,
)

MODELS: Mapping[str, Any] = {"m": sim(max_batch_size=8)}
MOST_GROWTH_BYTES = 96 << 20
_ACTIONS_PER_BURST = 40
#: Work that a balancer may well ask for is left out where it would only take long.
_MOST_PIXELS, _MOST_STEPS, _MOST_TASKS = 256 * 256, 300, 20


class Madness:
    """The balancer's end of the line to one worker."""

    def __init__(self, folder: Path, seed: int, models: Mapping[str, Any] = MODELS) -> None:
        """Start the worker, which serves the first of `models` on a CPU."""
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump({"models": dict(models), "workers": {"heartbeat_s": 0.2, "lost_after_s": 5}}))
        self._folder = folder
        self._random = random.Random(seed)
        self._maker = FrameMaker(seed, ToWorker, ["t1", "t2", "t3", "w", "ddim", "euler"])
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDTIMEO, int(1000 * PATIENCE_S))
        self._socket.bind(worker_address(folder))
        self._worker: Process = launch("worker", folder, "--config", str(config), "--id", "w", log="w")
        #: What the worker has drawn by the name of the task, where that was an honest one.
        self._drawn: dict[str, bytes] = {}
        self._beat: Heartbeat | None = None
        self._rss = 0
        self.sent = self.malformed = self.answered = 0
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self._until(lambda: self._beat is not None, "the worker's first heartbeat")
        self._wanted = self._draw("before")

    def burst(self) -> None:
        """Some time of it. The first one shows what the worker weighs."""
        for _ in range(_ACTIONS_PER_BURST):
            frames = self._maker.beyond() if self._random.random() < 0.01 else self._maker.some()
            if _harmless(frames):
                self._say(frames)
            self._listen()
        if self._draw(f"honest-{self.sent}") != self._wanted:
            self.faults.append("an honest task came to another picture")
        self.answered += 1
        self._say(encode([BalancerEnvelope(Cancel(list(self._maker.names)))]))  # what it was given to no purpose
        self._rss = self._rss or self._weight()

    def end(self) -> dict[str, int]:
        """Let it finish, and see what is left. What is wrong stands in `faults`."""
        with self._noting():
            self._until(self._idle, "the worker to be idle, and to have counted every message that was none")
        grown = max(self._weight() - self._rss, 0)
        if grown > MOST_GROWTH_BYTES:
            self.faults.append(f"it grew by {grown >> 20} MiB")
        self.kill()
        return {"sent": self.sent, "malformed": self.malformed, "answered": self.answered, "grown_bytes": grown}

    def kill(self) -> None:
        """End the worker, whatever it does. Idempotent."""
        if self._worker.poll() is None:
            self._worker.kill()
        self._worker.wait(PATIENCE_S)
        if not self._socket.closed:
            self._socket.close(0)
            self._context.term()

    def _idle(self) -> bool:
        assert self._beat is not None
        return self._beat.running == 0 and self._beat.counters.malformed == self.malformed

    def _draw(self, name: str) -> bytes:
        """The picture of a task that is always the same."""
        inputs = ImageInputs("a seven", 64, 64, 8, 3.0, 7, "ddim", reproducible=True)
        self._say(encode([BalancerEnvelope(Assign([Assignment(name, 1, inputs)]))]))
        self._drawn[name] = b""
        self._until(lambda: bool(self._drawn[name]), "an honest picture")
        return self._drawn.pop(name)

    def _say(self, frames: Frames | list[Any]) -> None:
        """Raises `zmq.ZMQError` where the worker does not take it, or has gone."""
        if not frames:
            return
        try:
            decode_for_worker(frames)
        except MalformedFrames:
            self.malformed += 1
        self._socket.send_multipart([b"w", *frames])
        self.sent += 1

    def _listen(self, patience_s: float = 0.0) -> None:
        if not self._socket.poll(math.ceil(1000 * patience_s)):
            return
        with contextlib.suppress(zmq.Again):
            while True:
                for message, frames in decode_from_worker(self._socket.recv_multipart(zmq.DONTWAIT)[1:]):
                    self.answers[type(message).__name__] += 1
                    if isinstance(message, Finished) and message.task in self._drawn:
                        self._drawn[message.task] = bytes(frames[0])
                    elif isinstance(message, Heartbeat):
                        self._beat = message
                    if isinstance(message, Heartbeat | Hello):
                        self._socket.send_multipart([b"w", *encode([BalancerEnvelope(Ack(0.2))])])

    def _until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            log = self._folder / "w.log"
            assert self._worker.poll() is None, f"the worker ended with {self._worker.returncode}:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"waited in vain for: {what}; {self._beat}\n{log.read_text()[-2000:]}"
            self._listen(0.05)

    def _weight(self) -> int:
        return int(psutil.Process(self._worker.pid).memory_info().rss)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            self.faults.append(str(error))


def _harmless(frames: Frames) -> bool:
    """Whether it is no order to end, nor to do what only takes long or much room."""
    with contextlib.suppress(MalformedFrames):
        for message, _ in decode_for_worker(frames):
            if isinstance(message, Reject) and message.fatal:
                return False
            if isinstance(message, Assign) and (len(message.tasks) > _MOST_TASKS or any(map(_large, message.tasks))):
                return False
    return True


def _large(task: Assignment) -> bool:
    return task.inputs.width * task.inputs.height > _MOST_PIXELS or task.inputs.steps > _MOST_STEPS
