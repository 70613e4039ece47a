"""Drives a contender through a load and notes when each token came. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from scripts.bench.text.workload import TokenRequest


class TokenEvent(NamedTuple):
    """Tokens that a request got, at a moment of `time.perf_counter`."""

    number: int
    tokens: int
    at: float


class Contender(Protocol):
    """A way to generate texts. All run in one process and are stepped by the driver."""

    def load(self) -> None: ...

    def submit(self, request: TokenRequest) -> None: ...

    def step(self) -> Sequence[TokenEvent]:
        """Work for a while on what was submitted, and return the tokens that came."""

    def describe(self) -> str:
        """Return versions and precision."""


def drive(
    contender: Contender, requests: Sequence[TokenRequest], concurrency: int | None, interval: int | None = 1
) -> dict[str, Any]:
    """Run a load and return its figures. `concurrency`: of a closed loop; None: each request has its arrival time.

    `interval`: steps between two admissions; None: the next texts are admitted when no text is left. Texts that wait
    for their admission are not in a step, but their times run.
    """
    waiting, running = list(requests), dict[int, int]()
    due: list[TokenRequest] = []
    sent: dict[int, float] = {}
    arrivals: dict[int, list[tuple[float, int]]] = {request.number: [] for request in requests}
    start, cpu_start, steps = time.perf_counter(), time.process_time(), 0
    while waiting or due or running:
        now = time.perf_counter()
        while waiting and _is_due(waiting[0], now - start, len(running) + len(due), concurrency):
            due.append(request := waiting.pop(0))
            sent[request.number] = now if concurrency is not None else start + request.arrives_at
        if not running or (interval is not None and steps % interval == 0):
            for request in due:
                running[request.number] = request.tokens
                contender.submit(request)
            due.clear()
        if not running:
            time.sleep(max(waiting[0].arrives_at - (time.perf_counter() - start), 0))
            continue
        steps += 1
        for event in contender.step():
            arrivals[event.number].append((event.at, event.tokens))
            running[event.number] -= event.tokens
            if running[event.number] <= 0:
                del running[event.number]
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    figures = _figures(arrivals, sent, seconds)
    # Other programs on the machine change it less than the tokens per second.
    return figures | {"steps": steps, "cpu_s": cpu_s, "tokens_per_cpu_s": figures["tokens"] / cpu_s}


def _is_due(request: TokenRequest, elapsed: float, running: int, concurrency: int | None) -> bool:
    return request.arrives_at <= elapsed if concurrency is None else running < concurrency


def _figures(arrivals: dict[int, list[tuple[float, int]]], sent: dict[int, float], seconds: float) -> dict[str, Any]:
    tokens = sum(count for events in arrivals.values() for _, count in events)
    first = [events[0][0] - sent[number] for number, events in arrivals.items()]
    # Tokens that came together have come at once.
    between = [
        gap
        for events in arrivals.values()
        for index, (at, count) in enumerate(events)
        for gap in [*([at - events[index - 1][0]] if index else []), *[0.0] * (count - 1)]
    ]
    whole = [events[-1][0] - sent[number] for number, events in arrivals.items()]
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "requests_per_s": len(arrivals) / seconds,
        **_percentiles("ttft_ms", first),
        **_percentiles("itl_ms", between),
        **_percentiles("latency_ms", whole),
    }


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds) or [float("nan")]
    return {
        f"{name}_p{percent}": 1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
        for percent in (50, 99)
    }
