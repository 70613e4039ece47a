"""Data types of the controller: replicas, observations, decisions, actions. Plain frozen data."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from host.types import WorkerProcess
from wire.snapshot import ArrivalBucket

#: Minimum observation time for a rate estimate, as a fraction of the look-back period.
_ENOUGH = 1 / 3


class Stage(enum.StrEnum):
    """The stages of a worker process."""

    #: Loading; not connected to the balancer yet.
    STARTING = "starting"
    READY = "ready"
    #: Draining.
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Device:
    """A device for workers, by its name: `cuda:0`, `cpu:3`, `sim:1`; `gpu-box/cuda:0` on another machine."""

    name: str
    #: Bytes that workers may share; None: memory is not counted, and each slot is for one worker.
    memory: int | None = None
    #: Why no worker starts there; empty if healthy.
    fault: str = ""
    #: A worker takes all of it, however little it needs: something else hands out whole devices.
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Replica:
    """A live worker process with the balancer's view of it."""

    process: WorkerProcess
    stage: Stage
    #: Assigned and running tasks.
    load: int = 0
    #: Start of its silence after it was ready; None if not silent.
    silent_since: float | None = None
    #: It sends heartbeats, but completes no step.
    stuck: bool = False
    #: Reported peak memory of its device; 0 if not reported.
    memory_bytes: int = 0
    #: Reported start-up time in seconds; 0 if not reported.
    started_in_s: float = 0.0
    #: Whether it was a standby worker.
    from_standby: bool = False

    @property
    def serves(self) -> bool:
        """Return whether it is ready, and the balancer hears from it."""
        return self.stage is Stage.READY and self.silent_since is None


@dataclass(frozen=True, slots=True)
class Queue:
    """A model's tasks, as the balancer counts them."""

    queued: int
    running: int
    #: Tasks of a full batch on one worker; None until one was measured.
    batch_cap: int | None = None
    #: Time of a task in a full batch divided by its time alone; 1 if the accelerator computes a batch in parallel.
    batch_slowdown: float = 1.0
    #: Seconds that one worker would need for all queued and running tasks, one after the other; None until a step was
    #: measured.
    backlog_work_s: float | None = None
    #: Mean seconds of work of one task, over the last arrivals; None until a step was measured.
    mean_work_s: float | None = None
    #: Arrivals within the last `look_back_period_s`, and within the last `rate_window_s`.
    arrivals_short_window: int = 0
    arrivals_long_window: int = 0
    #: Counters: tasks whose first run started, and those among them that had waited longer than `slo.max_wait_s`.
    started_total: int = 0
    started_late_total: int = 0
    #: Wait of the oldest queued task; 0 if none is queued.
    oldest_wait_s: float = 0.0
    #: Tasks that another server runs now, because no worker was ready or the wait was too long. They count as arrivals,
    #: but not as queued or running.
    proxied_in_flight: int = 0
    #: Time since the balancer started to count.
    uptime_s: float = 0.0
    #: Arrivals by second, oldest first: of two minutes, or of two `interval_s` if that is longer.
    recent_arrivals: Sequence[ArrivalBucket] = ()
    #: Part of `backlog_work_s` that more workers would not end earlier, because a task occupies one place only: the
    #: rest of running tasks beyond `drain_s` in a full batch.
    long_work_s: float = 0.0
    #: Counter: tasks that ended without a start, except those whose client left within `slo.max_wait_s`.
    unstarted_late_total: int = 0

    @property
    def divisible_work_s(self) -> float | None:
        """Return the part of `backlog_work_s` that more workers can share; None until a step was measured."""
        return None if self.backlog_work_s is None else max(self.backlog_work_s - self.long_work_s, 0.0)

    @property
    def worker_speed(self) -> float:
        """Return the seconds of work per second of one worker with a full batch."""
        return (self.batch_cap or 1) / self.batch_slowdown

    def recent_rate(self, period_s: float) -> float:
        """Return the arrivals per second over the look-back period `period_s`."""
        return self.arrivals_short_window / min(period_s, max(self.uptime_s, period_s * _ENOUGH))


@dataclass(frozen=True, slots=True)
class Observation:
    """One model at one moment: the input of its policy."""

    model: str
    #: None if the balancer did not answer; unknown is not zero.
    queue: Queue | None
    replicas: Sequence[Replica]
    #: Workers that crashed and have no replacement yet. They count as capacity, so that a crash is no scale-down.
    owed: int = 0
    #: Seconds from a start until the worker is ready, as measured or configured.
    cold_start_s: float = 40.0
    #: Its standby workers. They are no capacity, and use no device.
    spares: Sequence[WorkerProcess] = ()
    #: Current time in Unix seconds; None if unknown: then schedules do not apply.
    unix_s: float | None = None

    @property
    def provisioned(self) -> int:
        """Return the workers that are capacity now or soon: ready, starting or to be replaced, not draining."""
        return sum(replica.stage is not Stage.DRAINING for replica in self.replicas) + self.owed


@dataclass(frozen=True, slots=True)
class Decision:
    """The desired number of workers of a model. An invalid decision changes nothing."""

    desired: int
    reason: str
    valid: bool = True
    #: Inputs of the policy's formula, by name.
    inputs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker. A standby worker loads the model and waits for a device of a kind (`cuda`, `cpu`, `sim`)."""

    model: str
    #: The device, or the kind.
    device: str
    reason: str
    standby: bool = False


@dataclass(frozen=True, slots=True)
class Activate:
    """Activate a standby worker on the device."""

    id: str
    model: str
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Drain a worker: it finishes its tasks and exits."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL to a worker."""

    id: str
    reason: str


Action = Start | Activate | Drain | Kill


@dataclass(frozen=True, slots=True)
class CrashBackoff:
    """A model's recent crashes in a row, and when it may try again."""

    count: int = 0
    retry_at: float = 0.0
    last_at: float = 0.0
    #: Why the last start failed, and how often it failed so in a row.
    reason: str = ""
    equal_failures: int = 0
    #: Machine of the last crash; empty for the controller's machine, None if it is unknown.
    machine: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """A model's worker bounds and timeouts, resolved for this machine. Times are in seconds."""

    min_workers: int
    max_workers: int
    start_timeout_s: float
    drain_timeout_s: float
    lost_after_s: float
