"""What the balancer tells the controller (`GET /internal/snapshot`): counts and rates, never a request's content."""

from __future__ import annotations

from typing import Literal

import msgspec

from wire.messages import Counters, StartTimes

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
    #: How much longer a task takes in such a batch than alone.
    slow_down: float = 1.0
    #: What one worker would need for all that is queued and running, one task after the other, in seconds; None until
    #: a step was measured. What was measured last stands when no worker is left.
    work_s: float | None = None
    #: The same of one task, as a mean over the last 200 that came; None until one came and a step was measured.
    mean_work_s: float | None = None
    #: Tasks that came within the model's `look_back_period_s`, and within its `rate_window_s`.
    recent: int = 0
    lately: int = 0
    #: Sums since the start: tasks that a worker began for the first time, and those of them that had waited for longer
    #: than the model's `slo.max_wait_s`.
    dispatched: int = 0
    late: int = 0
    #: Of those that came, the ones that another server was asked to do (`cold_start_proxy`).
    forwarded: int = 0
    #: Those of them that it has not answered yet.
    elsewhere: int = 0


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
    #: How long its start took, in parts.
    start: StartTimes = StartTimes()


class Snapshot(msgspec.Struct, frozen=True):
    """The whole state that scaling decisions rest on. `time` is Unix seconds, `uptime_s` the balancer's age."""

    time: float
    uptime_s: float
    models: list[ModelStats]
    workers: list[WorkerStats]
