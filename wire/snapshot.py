"""The balancer's counts and rates for scaling decisions (`GET /internal/snapshot`), without any request content."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from wire.messages import StartupTimes, WorkerCounters
from wire.text import TextCounters

#: `silent`: no heartbeat arrives. `stuck`: heartbeats arrive, and tasks are assigned, but no step completes.
WorkerState = Literal["ready", "draining", "silent", "stuck"]


class ArrivalBucket(NamedTuple):
    """The arrivals within one second. Seconds without arrivals are left out."""

    #: Whole second of the balancer's uptime.
    second: int
    tasks: int
    #: Sum of their work in seconds, and the largest of it; 0 until a step was measured.
    work_s: float
    largest_s: float


class LinkBytes(NamedTuple):
    """Bytes of a worker's messages since it connected: to the balancer, and to the worker."""

    received: int = 0
    sent: int = 0


class ModelStats(msgspec.Struct, frozen=True):
    """One model's queue at `Snapshot.time`. Rates are per second, over the last minute."""

    model: str
    #: Also those that workers hold ahead of their next step.
    queued: int
    #: Assigned and running tasks.
    running: int
    #: Seconds that the queued tasks would take one worker at its present batch; None until a step was measured.
    queued_work_s: float | None
    #: Age of the oldest queued task; 0 if none is queued.
    oldest_wait_s: float
    arrival_rate: float
    service_rate: float
    #: Measured size of a full batch on one worker; None until it is measured.
    batch_cap: int | None = None
    #: Duration of a task in a full batch, relative to its duration in a batch of one.
    batch_slowdown: float = 1.0
    #: Seconds that one worker would need for all queued and running tasks, one after the other; None until a step was
    #: measured. The last measurement remains when no worker is left.
    backlog_work_s: float | None = None
    #: Part of it that running tasks need beyond the model's `drain_s` in a full batch.
    long_work_s: float = 0.0
    #: Mean work of one task, over the last 200 arrivals; None until one arrived and a step was measured.
    mean_work_s: float | None = None
    #: Arrivals within the model's `look_back_period_s`, and within its `rate_window_s`.
    arrivals_short_window: int = 0
    arrivals_long_window: int = 0
    #: Counts since the start: tasks that a worker started for the first time, and those of them that had waited longer
    #: than the model's `slo.max_wait_s`.
    started_total: int = 0
    started_late_total: int = 0
    #: Arrivals that were passed to another server (`cold_start_proxy`), and those that it has not answered yet.
    proxied_total: int = 0
    proxied_in_flight: int = 0
    #: Arrivals by second, oldest first: of two minutes, or of two `interval_s` if that is longer.
    recent_arrivals: tuple[ArrivalBucket, ...] = ()
    #: Tasks that ended without a start, except those whose client left within `slo.max_wait_s`. They did not keep the
    #: promise either.
    unstarted_late_total: int = 0


class WorkerStats(msgspec.Struct, frozen=True):
    """One worker, as known to the balancer."""

    worker: str
    model: str
    device: str
    pid: int
    state: WorkerState
    slots: int
    assigned: int
    running: int
    last_message_age_s: float
    step_s: float
    batch: float
    memory_bytes: int
    counters: WorkerCounters
    #: Durations of the phases of its start.
    start: StartupTimes = StartupTimes()
    #: Of a language model.
    text: TextCounters | None = None
    #: Bytes of its messages since it connected, with their headers: to the balancer, and to the worker.
    received_bytes: int = 0
    sent_bytes: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """The input of scaling decisions. `time` is in Unix seconds; `uptime_s` is the balancer's age."""

    time: float
    uptime_s: float
    models: list[ModelStats]
    workers: list[WorkerStats]
