"""An in-memory load balancer for benchmarks of the step loop, without a socket.

It assigns tasks up to the worker's capacity, the oldest first.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from scripts.bench.serving.workloads import BenchRequest
from wire.codec import BalancerEnvelope, WorkerEnvelope
from wire.messages import Assign, Assignment, Capacity, Failed, Finished, Preempted, ToBalancer
from worker.transport import DrainRequested


class FakeBalancer:
    """Implements `worker.transport.Transport`; thread-safe."""

    def __init__(self, done: Callable[[BenchRequest], None]) -> None:
        """`done` is called for every finished request, in the thread that finishes it."""
        self._done = done
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[BalancerEnvelope | DrainRequested] = queue.SimpleQueue()
        self._queued: deque[BenchRequest] = deque()
        self._assigned: dict[str, BenchRequest] = {}
        self._slots = 0

    def submit(self, request: BenchRequest) -> None:
        with self._lock:
            self._queued.append(request)
            self._fill()

    def drain(self) -> None:
        """Make the loop return its tasks and end."""
        for _ in range(2):
            self._inbox.put(DrainRequested("the measurement is over"))

    # ---- interface of the link

    def send(self, *envelopes: WorkerEnvelope) -> None:
        """Handle messages of the worker."""
        ended: list[BenchRequest] = []
        with self._lock:
            for message, _ in envelopes:
                ended += self._on_message(message)
            self._fill()
        for request in ended:
            self._done(request)

    def receive(self, timeout_s: float) -> list[BalancerEnvelope | DrainRequested]:
        """Return all queued messages; wait up to `timeout_s` for the first."""
        envelopes: list[BalancerEnvelope | DrainRequested] = []
        try:
            envelopes.append(self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait())
            while True:
                envelopes.append(self._inbox.get_nowait())
        except queue.Empty:
            return envelopes

    # ---- callers hold the lock

    def _on_message(self, message: ToBalancer) -> list[BenchRequest]:
        match message:
            case Capacity(slots):
                self._slots = slots
            case Finished(task=task) | Failed(task=task):
                request = self._assigned.pop(task)
                request.finished = time.perf_counter()
                request.error = message.message if isinstance(message, Failed) else ""
                return [request]
            case Preempted(task=task):
                self._queued.appendleft(self._assigned.pop(task))
        return []

    def _fill(self) -> None:
        tasks: list[Assignment] = []
        while self._queued and len(self._assigned) < self._slots:
            request = self._queued.popleft()
            self._assigned[request.task] = request
            tasks.append(Assignment(request.task, 1, request.inputs))
        if tasks:
            self._inbox.put(BalancerEnvelope(Assign(tasks)))
