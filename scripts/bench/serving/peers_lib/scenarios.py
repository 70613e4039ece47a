"""The scenarios: each deploys a user model on a fresh server, loads it, and returns what its clients observed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import uvloop

from scripts.bench.serving.peers_lib import loads, wrk
from scripts.bench.serving.peers_lib.apps.user_model import LARGE_BYTES
from scripts.bench.serving.peers_lib.deployment import BODY, Deployment, Measurement
from scripts.bench.serving.peers_lib.running import RunningServer
from scripts.bench.serving.peers_lib.servers import YARDSTICK

IDEAL = "ideal"
_T = TypeVar("_T")
_WARM_UP_S, _LEAD_S = 1.5, 1.0
#: The batch of the simulated accelerator.
_BATCH = 12
_LEAVING_CLIENTS, _LEAVE_AFTER_S = 120, 0.2
_OVERLOAD = 3.0
_CLIENT_TIMEOUT_S = 30.0
_GRACE_S = 10.0
_RECOVERY_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Scenario:
    """A deployment and a load on it."""

    name: str
    question: str
    deployment: Deployment
    measure: Callable[[RunningServer, float], Measurement]
    #: What a ratio is of: `YARDSTICK`, the bare ASGI app in this scenario, or `IDEAL`, accelerators that never wait.
    yardstick: str = ""


def run(load: Coroutine[Any, Any, _T]) -> _T:
    """Run a load on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


def saturate(connections: int, client: str = "wrk") -> Callable[[RunningServer, float], Measurement]:
    """Return a measurement with so many busy connections: by `wrk` where it is installed."""

    def measure(server: RunningServer, seconds: float) -> Measurement:
        if client == "wrk" and wrk.is_installed():
            return _wrk(server, connections, seconds)
        return _closed_loop(server, connections, seconds)

    return measure


def _wrk(server: RunningServer, connections: int, seconds: float) -> Measurement:
    url, headers = server.target
    wrk.run(url, BODY, headers, connections, _WARM_UP_S)
    before = server.cpu_s()
    measurement = wrk.run(url, BODY, headers, connections, seconds)
    return _with_cpu(measurement, server.cpu_s() - before)


def _closed_loop(server: RunningServer, users: int, seconds: float) -> Measurement:
    run(loads.closed_loop(server.target, users, _WARM_UP_S))
    before, begin = server.cpu_s(), time.perf_counter()
    # The first answers of users who start at once do not count.
    outcomes = run(loads.closed_loop(server.target, users, _LEAD_S + seconds))
    measurement = loads.measured(outcomes, begin + _LEAD_S, begin + _LEAD_S + seconds)
    if batches := server.batches():
        return _with(measurement, mean_batch=sum(batches) / len(batches))
    measurement = _with_cpu(measurement, (server.cpu_s() - before) * seconds / (_LEAD_S + seconds))
    if server.deployment.model == "large":
        return _with(measurement, mb_per_s=measurement.per_s * LARGE_BYTES / 1e6)
    return measurement


def _with_cpu(measurement: Measurement, used_s: float) -> Measurement:
    return _with(measurement, cpu_us_per_request=1e6 * used_s / max(measurement.answered, 1))


def _with(measurement: Measurement, **details: float) -> Measurement:
    return replace(measurement, details={**measurement.details, **details})


def kill_worker(server: RunningServer, seconds: float) -> Measurement:
    """Kill one of the workers after a third of the time."""

    async def load() -> list[loads.Outcome]:
        async def kill() -> None:
            await asyncio.sleep(seconds / 3)
            os.kill(max(server.worker_pids()), signal.SIGKILL)

        killer = asyncio.create_task(kill())
        outcomes = await loads.closed_loop(server.target, 2 * _BATCH, seconds, _GRACE_S)
        await killer
        return outcomes

    begin = time.perf_counter()
    measurement = loads.measured(run(load()), begin, begin + seconds)
    answer_s = run(loads.one_answer(server.target, _RECOVERY_TIMEOUT_S))
    return _with(measurement, workers_at_the_end=len(server.worker_pids()), answer_after_s=answer_s)


def leave(server: RunningServer, seconds: float) -> Measurement:
    """Let clients leave before their answers, then ask once more. The work of clients that left is lost."""

    async def load() -> float:
        await loads.leave_early(server.target, _LEAVING_CLIENTS, _LEAVE_AFTER_S)
        return await loads.one_answer(server.target, _CLIENT_TIMEOUT_S)

    before = sum(server.batches())
    answer_s = run(load())
    time.sleep(max(seconds - answer_s, 0.5))
    computed = sum(server.batches()) - before - 1
    return Measurement(
        answered=int(answer_s < _CLIENT_TIMEOUT_S),
        p50_ms=1000 * answer_s,
        p99_ms=1000 * answer_s,
        details={"left": _LEAVING_CLIENTS, "computed": max(computed, 0)},
    )


def overload(server: RunningServer, seconds: float) -> Measurement:
    """Send three times what the accelerator can do, at random times."""
    rate = _OVERLOAD * server.deployment.ideal_per_s
    begin = time.perf_counter()
    outcomes = run(loads.open_loop(server.target, rate, seconds, _CLIENT_TIMEOUT_S))
    last = max(outcome.ended_at for outcome in outcomes)
    measurement = loads.measured(outcomes, begin, last)
    return _with(replace(measurement, per_s=measurement.answered / (last - begin)), asked_per_s=rate)


_NOOP, _NOOP_BATCHED, _LARGE = Deployment("noop"), Deployment("noop", 1, 16), Deployment("large")
_ACCELERATOR, _TWO, _FOUR = (Deployment("accelerator", workers, _BATCH) for workers in (1, 2, 4))
SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("noop", "no-op, 64 connections", _NOOP, saturate(64), YARDSTICK),
        Scenario("noop-batched", "no-op in batches of 16, 64 connections", _NOOP_BATCHED, saturate(64), YARDSTICK),
        Scenario("crowd", "no-op, 1000 connections", _NOOP_BATCHED, saturate(1000), YARDSTICK),
        Scenario("large", "1.5 MB results, 16 connections", _LARGE, saturate(16, "python"), YARDSTICK),
        Scenario("accelerator-1", "1 accelerator, 64 users", _ACCELERATOR, saturate(64, "python"), IDEAL),
        Scenario("accelerator-4", "4 accelerators, 256 users", _FOUR, saturate(256, "python"), IDEAL),
        Scenario("kill", "1 of 2 workers killed", _TWO, kill_worker),
        Scenario("leave", f"{_LEAVING_CLIENTS} clients leave", _ACCELERATOR, leave),
        Scenario("overload", f"{_OVERLOAD:g} times the capacity", _ACCELERATOR, overload, IDEAL),
    )
}


def yardstick_of(scenario: Scenario, bare_per_s: float) -> float:
    """Return the requests per second that ratios are of; NaN if there is none."""
    if scenario.yardstick == YARDSTICK:
        return bare_per_s
    return scenario.deployment.ideal_per_s if scenario.yardstick == IDEAL else float("nan")


def takes_part(server: str, scenario: Scenario) -> bool:
    """Return whether a server runs a scenario."""
    return server != YARDSTICK or scenario.yardstick == YARDSTICK
