"""`python -m controller replay`: simulates other scaling settings on a server's own arrival logs, for its page.

Reads a `SimulationRequest` as JSON from standard input, and writes one `SimulationReply` per line. It limits its own
CPU time and memory.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from configs.load import ConfigError, load
from configs.scaling import Scaling
from configs.settings import Settings
from controller.policies import PolicyImportError, find
from controller.simulator.agents import MusterAgent
from controller.simulator.model_sim import WorkerProfile, batch_slowdowns
from controller.simulator.recorded_requests import RecordedRequest, measured_waits, read_logs, traffic_from
from controller.simulator.results import model_results
from controller.simulator.scaling_fields import InvalidScaling, with_fields
from controller.simulator.scenarios import Scenario, Traffic
from controller.simulator.simulator import SimulationResult
from controller.simulator.synthetic import synthetic_traffic
from controller.simulator.trace_rows import InvalidTrace
from wire.simulation import (
    MAX_POINTS,
    RunSettings,
    SimulatedRun,
    SimulatedTraffic,
    SimulationProgress,
    SimulationRefused,
    SimulationReply,
    SimulationRequest,
)

#: Cold start where none was measured.
_COLD_START_S = 40.0
_DAY_S = 86_400.0
#: Requests per second of an invented day, and the share of all workers that they keep busy on average.
_INVENTED_RATE, _INVENTED_LOAD = 0.2, 0.35
#: Seconds between two points: the first that leads to few enough of them.
_STEPS_S = (10.0, 60.0, 120.0, 300.0, 600.0, 3600.0)
_POINTS = 750
_PROGRESS_INTERVAL_S = 0.25
_NICE = 10

Send = Callable[[SimulationReply], None]


class InvalidReplay(Exception):
    """The request cannot be simulated; the text says what to change."""


def main(argv: Sequence[str]) -> int:
    """Answer the request of standard input. Returns the exit status: 0, or 2 for one that is refused."""
    parser = argparse.ArgumentParser(
        prog="python -m controller replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=SimulationRequest)
    except msgspec.MsgspecError as error:
        _print(SimulationRefused(f"Standard input is no simulation request: {error}"))
        return 2
    _limit(request)
    try:
        replay(request, _print)
    except InvalidReplay as error:
        _print(SimulationRefused(str(error)))
        return 2
    except MemoryError:
        _print(SimulationRefused("The simulation needs too much memory. Choose a shorter time."))
        return 2
    return 0


def _limit(request: SimulationRequest) -> None:
    """Give way to the server, and end after so much CPU time."""
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (request.max_cpu_s, request.max_cpu_s + 1))
    with contextlib.suppress(ValueError, OSError):  # some systems have no such limit
        resource.setrlimit(resource.RLIMIT_AS, (request.max_memory_bytes, request.max_memory_bytes))


def _print(reply: SimulationReply) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
    sys.stdout.buffer.flush()


def replay(request: SimulationRequest, send: Send) -> None:
    """Simulate every run, and send the replies. Raises `InvalidReplay`."""
    try:
        settings = load(Path(request.config))
        scalings = [_scaling(settings, request.model, run) for run in request.runs]
        recorded = read_logs([Path(log) for log in request.logs], request.model, request.since, request.until)
    except (ConfigError, InvalidTrace) as error:
        raise InvalidReplay(str(error)) from None
    if request.logs and not recorded:
        raise InvalidReplay(f"No request of {request.model} was recorded in this time.")
    profile = _profile(request)
    start, end = _span(request, recorded)
    step_s = next((step for step in _STEPS_S if (end - start) / step <= _POINTS), _STEPS_S[-1])
    traffic = traffic_from(recorded, start) if request.logs else _invented(request, profile)
    send(_traffic_reply(traffic, recorded, scalings[0], start, end, step_s))
    for run, scaling in zip(request.runs, scalings, strict=True):
        send(_run(request, run.name, scaling, profile, traffic, start, end, step_s, send))


def _scaling(settings: Settings, model: str, run: RunSettings) -> Scaling:
    if model not in settings.models:
        raise InvalidReplay(f"The configuration has no model {model} any more.")
    try:
        return with_fields(settings.scaling(model), run.fields)
    except InvalidScaling as error:
        raise InvalidReplay(f"{run.name}: {error}") from None


def _profile(request: SimulationRequest) -> WorkerProfile:
    """Return the workers as the server has measured them."""
    batch, slowdown = max(request.batch, 1), request.batch_slowdown
    fixed_share = min(max((batch - slowdown) / (batch - 1), 0.0), 1.0) if batch > 1 else 1.0
    cold_start_s = request.cold_start_s or _COLD_START_S
    return WorkerProfile(request.model, batch_slowdowns(batch, fixed_share), (cold_start_s,))


def _span(request: SimulationRequest, recorded: Sequence[RecordedRequest]) -> tuple[float, float]:
    """Return the first and the last Unix time: from the minute of the first request on."""
    if not request.logs:
        return request.until - _DAY_S, request.until
    first = min(one.at for one in recorded)
    return first // 60 * 60, max(request.until, first + 60)


def _invented(request: SimulationRequest, profile: WorkerProfile) -> Traffic:
    """Return a day of requests that keeps a part of the workers busy."""
    speed = profile.batch / profile.slowdowns[-1]
    work_s = _INVENTED_LOAD * request.max_workers * speed / _INVENTED_RATE
    return synthetic_traffic(f"synthetic:daily?rate={_INVENTED_RATE}&work={work_s:g}")


def _traffic_reply(
    traffic: Traffic,
    recorded: Sequence[RecordedRequest],
    current: Scaling,
    start: float,
    end: float,
    step_s: float,
) -> SimulatedTraffic:
    arrivals = [0.0] * min(math.ceil((end - start) / step_s), MAX_POINTS)
    for at in traffic.times:
        arrivals[min(int(at / step_s), len(arrivals) - 1)] += 1
    mean_s = sum(traffic.work) / max(len(traffic.work), 1)
    measured = measured_waits(recorded, current.slo.max_wait_s) if recorded else None
    return SimulatedTraffic(len(traffic.times), mean_s, start, step_s, arrivals, measured)


def _run(
    request: SimulationRequest,
    name: str,
    scaling: Scaling,
    profile: WorkerProfile,
    traffic: Traffic,
    start: float,
    end: float,
    step_s: float,
    send: Send,
) -> SimulatedRun:
    """Simulate one run from `start` to `end` in Unix seconds, with its progress on the way."""
    model, span_s = request.model, end - start
    max_workers = request.max_workers if scaling.max_workers == "auto" else scaling.max_workers
    gpus = max(max_workers, scaling.min_workers)
    scenario = Scenario({model: traffic}, {model: profile}, {model: scaling}, gpus, span_s, start_unix_s=start)
    try:
        targets = scenario.targets()
        agent = MusterAgent(targets, {model: find(scaling.policy)})
    except PolicyImportError as error:
        raise InvalidReplay(str(error)) from None
    progress = _Progress(name, span_s, send)
    result = scenario.run(agent, targets, sample_s=step_s, on_progress=progress)
    [found] = model_results(scaling.policy, result)
    numbers: dict[str, Any] = found.as_json()
    return SimulatedRun(
        name=name,
        policy=scaling.policy,
        min_workers=scaling.min_workers,
        max_workers=gpus,
        max_wait_s=scaling.slo.max_wait_s,
        percentile=scaling.slo.percentile,
        in_time=found.in_slo,
        wait_p50_s=numbers["wait_p50_s"],
        wait_p99_s=numbers["wait_p99_s"],
        unserved=found.unserved,
        worker_hours=found.gpu_hours,
        starts=found.cold_starts,
        utilisation=found.utilisation,
        workers=_workers(result, model, math.ceil(span_s / step_s)),
    )


def _workers(result: SimulationResult, model: str, points: int) -> list[float]:
    samples = result.samples[model][: min(points, MAX_POINTS)]
    return [float(sample.ready + sample.starting) for sample in samples]


class _Progress:
    """Sends the progress of a run a few times per second."""

    def __init__(self, name: str, span_s: float, send: Send) -> None:
        self._name, self._span_s, self._send = name, span_s, send
        self._sent_at = -math.inf

    def __call__(self, simulated_s: float) -> None:
        now = time.monotonic()
        if now - self._sent_at >= _PROGRESS_INTERVAL_S:
            self._sent_at = now
            self._send(SimulationProgress(self._name, round(min(simulated_s / self._span_s, 1.0), 3)))
