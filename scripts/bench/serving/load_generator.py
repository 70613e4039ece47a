"""Generates a load on a server and records completion times."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from scripts.bench.serving.servers import Server, ServerUsage
from scripts.bench.serving.workloads import BenchRequest, Steps, completion_rate, poisson, quantile, request_stream
from wire.inputs import ImageInputs


@dataclass(frozen=True)
class Load:
    """A load: the same requests for each server and, with a rate, the same arrival times."""

    name: str
    base: ImageInputs
    steps: Steps
    #: Measured seconds, after `lead_s` seconds of warm-up.
    seconds: float
    lead_s: float
    #: Seed name of the requests; differs by round.
    trace: str
    #: Number of closed-loop users; 0 for open-loop arrivals at `rate`.
    users: int = 0
    rate: float = 0.0

    def first(self) -> list[BenchRequest]:
        """Return the first requests, with arrival times in seconds from the start."""
        if not self.users:
            times = poisson(self.rate, self.lead_s + self.seconds, self.trace)
            made = islice(request_stream(self.base, self.steps, self.trace), len(times))
            return [replace(request, arrived=when) for request, when in zip(made, times, strict=True)]
        # Users who start at once would stay synchronized for a long time.
        return [replace(next(own), arrived=self.lead_s / 2 * user / self.users) for user, own in self.streams().items()]

    def streams(self) -> dict[int, Iterator[BenchRequest]]:
        """Return the request stream of each user."""
        return {user: request_stream(self.base, self.steps, f"{self.trace}.{user}", user) for user in range(self.users)}


@dataclass
class LoadResult:
    """The results of a load."""

    load: Load
    server: str
    #: Seconds to the image for requests in the measured interval; a lower bound if unanswered.
    latencies: list[float] = field(default_factory=list)
    unanswered: int = 0
    errors: int = 0
    images_per_s: float = 0.0
    row_steps_per_s: float = 0.0
    busy: float = 0.0
    mean_batch: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Return the results in milliseconds and per second."""
        return {
            "server": self.server,
            "requests": len(self.latencies),
            "images_per_s": self.images_per_s,
            "row_steps_per_s": self.row_steps_per_s,
            "p50_ms": 1000 * quantile(self.latencies, 0.5),
            "p99_ms": 1000 * quantile(self.latencies, 0.99),
            "busy": self.busy,
            "mean_batch": self.mean_batch,
            "unanswered": self.unanswered,
            "errors": self.errors,
        }


def run(server: Server, load: Load, timeout_s: float | None = None) -> LoadResult:
    """Run the load, then wait for open requests: `timeout_s`, or the load's duration by default."""
    finished: queue.SimpleQueue[BenchRequest] = queue.SimpleQueue()
    server.start(finished.put)
    used, begin, arrivals = ServerUsage(), time.perf_counter(), []
    try:
        arrivals = _drive(server, load, finished, begin, timeout_s)
    finally:
        used, took = server.stop(), time.perf_counter() - begin
    return _load_result(server.name, load, arrivals, begin, used, took)


def _drive(
    server: Server, load: Load, finished: queue.SimpleQueue[BenchRequest], begin: float, timeout_s: float | None
) -> list[BenchRequest]:
    """Submit requests when they are due. Return all submitted requests."""
    coming, streams = load.first()[::-1], load.streams()
    for own in streams.values():
        next(own)  # the first request of each user is among the initial ones
    arrivals: list[BenchRequest] = []
    open_requests = 0
    end = begin + load.lead_s + load.seconds
    deadline = end + (load.lead_s + load.seconds if timeout_s is None else timeout_s)
    while (now := time.perf_counter()) < end or (open_requests and now < deadline):
        while coming and begin + coming[-1].arrived <= now < end:
            _submit(server, arrivals, coming.pop(), begin)
            open_requests += 1
        due = begin + coming[-1].arrived if coming else math.inf
        answered = _wait(finished, min(due, end if now < end else deadline) - now)
        if answered is None:
            continue
        open_requests -= 1
        if answered.user in streams and time.perf_counter() < end:
            again = next(streams[answered.user])
            again.arrived = time.perf_counter() - begin
            _submit(server, arrivals, again, begin)
            open_requests += 1
    return arrivals


def _submit(server: Server, arrivals: list[BenchRequest], request: BenchRequest, begin: float) -> None:
    request.arrived += begin  # latency of open-loop requests counts from their due time
    arrivals.append(request)
    server.submit(request)


def _wait(finished: queue.SimpleQueue[BenchRequest], seconds: float) -> BenchRequest | None:
    try:
        return finished.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        return None


def _load_result(
    name: str, load: Load, arrivals: Sequence[BenchRequest], begin: float, used: ServerUsage, took: float
) -> LoadResult:
    since, end, now = begin + load.lead_s, begin + load.lead_s + load.seconds, begin + took
    counted = [request for request in arrivals if request.arrived >= since]
    answers = {request: request.finished for request in arrivals if request.finished is not None and not request.error}
    inside = {request: at for request, at in answers.items() if since <= at <= end}
    return LoadResult(
        load,
        name,
        latencies=[answers.get(request, now) - request.arrived for request in counted],
        unanswered=sum(request not in answers for request in counted),
        errors=sum(bool(request.error) for request in arrivals),
        images_per_s=completion_rate(list(inside.values()), [1.0] * len(inside), since, end),
        row_steps_per_s=completion_rate(
            list(inside.values()), [request.inputs.steps for request in inside], since, end
        ),
        busy=used.busy_s / took,
        mean_batch=used.rows / max(used.batches, 1),
    )
