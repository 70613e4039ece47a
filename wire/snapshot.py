"""What the balancer tells the controller (`GET /internal/snapshot`): counts and rates, never a request's content."""

from __future__ import annotations

from typing import Literal

import msgspec

from wire.messages import Counters

#: `silent`: nothing is heard of it. `stuck`: it heartbeats, holds tasks, and makes no step.
WorkerState = Literal["ready", "draining", "silent", "stuck"]


class ModelStats(msgspec.Struct, frozen=True):
    """One model's queue, as of `Snapshot.time`. Rates are per second, over the last minute."""

    model: str
    queued: int
    #: Assigned and running tasks.
    running: int
    #: Seconds that the queued tasks would take one worker at its present batch; None until a step was measured.
    queued_work_s: float | None
    #: Age of the oldest queued task; 0 when none waits.
    oldest_wait_s: float
    arrival_rate: float
    service_rate: float
    #: Tasks that share a step on one worker when there are enough of them, as measured; None until it is.
    batch_cap: int | None = None


class WorkerStats(msgspec.Struct, frozen=True):
    """One worker, as the balancer sees it."""

    worker: str
    model: str
    device: str
    pid: int
    state: WorkerState
    slots: int
    assigned: int
    running: int
    last_seen_s: float
    step_s: float
    batch: float
    memory_bytes: int
    counters: Counters


class Snapshot(msgspec.Struct, frozen=True):
    """The whole state that scaling decisions rest on. `time` is Unix seconds, `uptime_s` the balancer's age."""

    time: float
    uptime_s: float
    models: list[ModelStats]
    workers: list[WorkerStats]
