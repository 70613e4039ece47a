"""Simulated workers for the dispatch benchmark: a process that answers assignments over ZeroMQ and computes nothing."""

from __future__ import annotations

import heapq
import json
import random
import sys
import time
from collections import deque
from dataclasses import dataclass, field

import zmq

from wire.codec import WorkerEnvelope, decode_for_worker, encode
from wire.inputs import NO_SHAPE, Part
from wire.messages import PROTOCOL, Assign, Capacity, Finished, Heartbeat, Hello, Started, StepCurve, WorkerCounters

#: Seconds between two heartbeats of a worker.
_HEARTBEAT_S = 1.0


@dataclass(slots=True)
class SimulatedWorker:
    """One connection. It answers each batch after `step_s`, and at once where that is 0."""

    socket: zmq.Socket[bytes]
    slots: int
    step_s: float
    steps: int = 0
    #: When it last freed slots that have not been filled since.
    freed_at: list[float] = field(default_factory=list)

    def say_hello(self, name: str, pid: int) -> None:
        hello = Hello(PROTOCOL, name, "m", "sim:0", pid)
        self._send(WorkerEnvelope(hello), WorkerEnvelope(Capacity(self.slots)))
        self.send_heartbeat()

    def send_heartbeat(self) -> None:
        step_s = self.step_s or 1e-4
        curve = StepCurve(NO_SHAPE, self.slots, [(1, step_s), (self.slots + 1, step_s * 1.01)])
        self._send(WorkerEnvelope(Heartbeat(0, step_s, 1.0, 0, WorkerCounters(steps=self.steps), [curve])))

    def receive(self) -> list[tuple[str, int]]:
        """Return the tasks that have been assigned."""
        return [
            (task.task, task.attempt)
            for envelope in decode_for_worker(self.socket.recv_multipart(zmq.DONTWAIT))
            if isinstance(envelope.message, Assign)
            for task in envelope.message.tasks
        ]

    def finish(self, tasks: list[tuple[str, int]], result: bytes) -> None:
        self.steps += 1
        messages = [WorkerEnvelope(Started(*task)) for task in tasks] if self.step_s else []
        self._send(
            *messages,
            *(WorkerEnvelope(Finished(*task, (Part("application/octet-stream"),)), [result]) for task in tasks),
        )

    def _send(self, *envelopes: WorkerEnvelope) -> None:
        self.socket.send_multipart(encode(envelopes))


def main(address: str, workers: int, slots: int, step_s: float, result_bytes: int) -> None:
    """Serve until stdin ends. Then print JSON: when each freed slot was filled, and after how many milliseconds."""
    result = bytes(result_bytes)
    context, poller, sims = zmq.Context(), zmq.Poller(), {}
    for number in range(workers):
        socket = context.socket(zmq.DEALER)
        name = f"w{number:03}"
        socket.setsockopt(zmq.ROUTING_ID, name.encode())
        socket.connect(address)
        poller.register(socket, zmq.POLLIN)
        sims[socket] = SimulatedWorker(socket, slots, step_s)
        sims[socket].say_hello(name, number + 1)
    delays: list[tuple[float, float]] = []
    #: End of each running batch.
    ends: list[tuple[float, int, SimulatedWorker, list[tuple[str, int]]]] = []
    chance, turns = random.Random(1), 0
    # Each worker has its own time in the second, as if they had started one after the other.
    now = time.perf_counter()
    beats = deque((now + _HEARTBEAT_S * number / workers, sim) for number, sim in enumerate(sims.values()))
    poller.register(sys.stdin, zmq.POLLIN | zmq.POLLERR)
    is_open = True
    while is_open:
        wait_s = min(beats[0][0], ends[0][0] if ends else beats[0][0]) - time.perf_counter()
        for socket, _ in poller.poll(int(max(wait_s, 0.0) * 1000)):
            if socket not in sims:
                is_open = False
                continue
            sim = sims[socket]
            tasks = sim.receive()
            now = time.perf_counter()
            delays += [(now, 1000 * (now - sim.freed_at.pop())) for _ in tasks if sim.freed_at]
            if tasks and not step_s:
                sim.finish(tasks, result)
            elif tasks:
                turns += 1
                heapq.heappush(ends, (now + step_s * chance.uniform(0.5, 1.5), turns, sim, tasks))
        now = time.perf_counter()
        while ends and ends[0][0] <= now:
            _, _, sim, tasks = heapq.heappop(ends)
            sim.freed_at = [time.perf_counter()] * len(tasks)
            sim.finish(tasks, result)
        while beats[0][0] <= now:
            _, sim = beats.popleft()
            sim.send_heartbeat()
            beats.append((now + _HEARTBEAT_S, sim))
    print(json.dumps(delays))
    context.destroy(linger=0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
