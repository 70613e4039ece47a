"""A simulation of a model's scaling with other settings: what the balancer asks of a `controller replay` process.

The process reads one request as JSON from its standard input. It writes one reply per line to its standard output.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

#: Settings that one request may compare, the present ones included.
MAX_RUNS = 5
#: Points of time in the replies.
MAX_POINTS = 1500

_Column = Annotated[list[float], msgspec.Meta(max_length=MAX_POINTS)]


class RunSettings(msgspec.Struct, frozen=True):
    """Settings to simulate: the present ones with these fields of `scaling`, nested as in the configuration."""

    name: str
    fields: dict[str, Any] = {}


class SimulationRequest(msgspec.Struct, frozen=True):
    """Recorded or invented traffic of one model, and settings to compare. Times are in Unix seconds."""

    #: Configuration file in force.
    config: str
    model: str
    runs: list[RunSettings]
    since: float
    until: float
    #: Arrival logs, the oldest first; empty: an invented day.
    logs: list[str] = []
    #: Of the present settings, for `max_workers: auto`.
    max_workers: int = 1
    #: Tasks in a full batch, and the duration of each, relative to its duration in a batch of one.
    batch: int = 1
    batch_slowdown: float = 1.0
    #: None if none was measured.
    cold_start_s: float | None = None
    #: The process ends itself beyond these.
    max_cpu_s: int = 120
    max_memory_bytes: int = 2 << 30


class MeasuredWaits(msgspec.Struct, frozen=True):
    """Recorded waits before the first step, in seconds. `in_time` is a share of the requests that were to run."""

    in_time: float
    wait_p50_s: float | None
    wait_p99_s: float | None
    #: Requests that no worker started before they ended.
    unserved: int


class SimulatedTraffic(msgspec.Struct, frozen=True, tag="traffic"):
    """The first reply: the traffic, and what was recorded of it."""

    requests: int
    mean_work_s: float
    #: Unix time of the first point, and seconds between two.
    start: float
    step_s: float
    #: Requests between each point and the next.
    arrivals: _Column
    measured: MeasuredWaits | None = None


class SimulationProgress(msgspec.Struct, frozen=True, tag="progress"):
    """A run has simulated this share of the traffic."""

    name: str
    share: float


class SimulatedRun(msgspec.Struct, frozen=True, tag="run"):
    """The outcome of one run. Waits of requests that were never served are None."""

    name: str
    policy: str
    min_workers: int
    max_workers: int
    max_wait_s: float
    percentile: float
    in_time: float
    wait_p50_s: float | None
    wait_p99_s: float | None
    unserved: int
    worker_hours: float
    starts: int
    #: Share of the worker hours that full batches would need.
    utilisation: float
    #: Ready and starting workers at each point.
    workers: _Column


class SimulationRefused(msgspec.Struct, frozen=True, tag="refused"):
    """The request cannot be simulated; the message says what to change. No reply follows."""

    message: str


SimulationReply = SimulatedTraffic | SimulationProgress | SimulatedRun | SimulationRefused
