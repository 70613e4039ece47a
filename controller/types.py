"""What the controller reasons about: replicas, observations, decisions, actions. Plain frozen data."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


class Stage(enum.StrEnum):
    """The stages of a worker process."""

    #: Loading; not connected to the balancer yet.
    STARTING = "starting"
    READY = "ready"
    #: Draining.
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A process as its launcher sees it. Times are seconds on the controller's clock."""

    id: str
    model: str
    device: str
    pid: int
    started_at: float
    #: Time of its drain.
    drained_at: float | None = None
    #: Time of the first snapshot that shows it ready.
    ready_at: float | None = None
    #: Digest of the settings that it was started with.
    generation: str = ""
    #: A standby worker: it has no device yet, and `device` is only the kind.
    spare: bool = False
    #: Time at which a standby worker had loaded.
    loaded_at: float | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A place where workers run, by the name that they are told: `cuda:0`, `cpu:3`, `sim:1`."""

    name: str
    #: Bytes that workers may share; None: memory is not counted, and each slot is for one worker.
    memory: int | None = None
    #: Why nothing is started there; empty if healthy.
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """A process that has ended."""

    process: WorkerProcess
    at: float
    #: Exit status; negative for a signal; None for an adopted process, where it is unknown.
    status: int | None
    #: The last lines of its log.
    tail: str = ""
    #: Why it could not start, in its own words; empty if it gave no reason.
    start_failure: str = ""


@dataclass(frozen=True, slots=True)
class Replica:
    """A live worker process with the balancer's view of it."""

    process: WorkerProcess
    stage: Stage
    #: Tasks that it holds.
    load: int = 0
    #: Start of its silence after it was ready; None if not silent.
    silent_since: float | None = None
    #: It sends heartbeats, but makes no step.
    stuck: bool = False
    #: Reported peak memory of its device; 0 if not reported.
    memory_bytes: int = 0
    #: Reported start-up time in seconds; 0 if not reported.
    started_in_s: float = 0.0
    #: Whether it was a standby worker.
    from_standby: bool = False


@dataclass(frozen=True, slots=True)
class Queue:
    """A model's tasks, as the balancer counts them."""

    queued: int
    running: int
    #: Tasks of a full batch on one worker; None until one was measured.
    batch_cap: int | None = None
    #: How much longer a task takes in a full batch than alone; 1 on an accelerator that computes them side by side.
    batch_slowdown: float = 1.0
    #: What one worker would need for all that is queued and running, one task after the other, in seconds; None until
    #: a step was measured.
    backlog_work_s: float | None = None
    #: The same of one task, as a mean over the last arrivals.
    mean_work_s: float | None = None
    #: Arrivals within the last `look_back_period_s`, and within the last `rate_window_s`.
    arrivals_short_window: int = 0
    arrivals_long_window: int = 0
    #: Since counting began: tasks that a worker took for the first time, and those of them that had waited for longer
    #: than the model's `slo.max_wait_s`.
    started_total: int = 0
    started_late_total: int = 0
    #: How long the oldest queued task has waited; 0 where none waits.
    oldest_wait_s: float = 0.0
    #: Tasks that another server does now, because no worker was ready or the wait would have been too long: they are
    #: counted as arrivals, and as nothing else.
    proxied_in_flight: int = 0
    #: For how long all this has been counted.
    uptime_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Observation:
    """One model at one moment: the input of its policy."""

    model: str
    #: None if the balancer did not answer; unknown is not zero.
    queue: Queue | None
    replicas: Sequence[Replica]
    #: Workers that died unbidden and are yet to be replaced: a decision that forgot them would make the loss its own.
    owed: int = 0
    #: What a start takes until the worker serves, in seconds, as measured or configured.
    cold_start_s: float = 40.0
    #: Its standby workers. They are no capacity, and use no device.
    spares: Sequence[WorkerProcess] = ()
    #: The time of day, in seconds since 1970; None where none is known, and schedules do not hold.
    unix_s: float | None = None

    @property
    def provisioned(self) -> int:
        """Return the workers that are capacity now or soon: ready, starting or to be replaced, not draining."""
        return sum(replica.stage is not Stage.DRAINING for replica in self.replicas) + self.owed


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers a model should have. A decision that is not valid changes nothing."""

    desired: int
    reason: str
    valid: bool = True
    #: The numbers behind it, by name.
    inputs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker of the model on the device."""

    model: str
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class StartSpare:
    """Start a process that loads the model and waits for a device of this kind (`cuda`, `cpu`, `sim`)."""

    model: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Activate:
    """Activate the standby worker on the device."""

    id: str
    model: str
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Drain the worker."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End the worker now."""

    id: str
    reason: str


Action = Start | StartSpare | Activate | Drain | Kill


@dataclass(frozen=True, slots=True)
class CrashBackoff:
    """A model's recent crashes in a row, and when it may try again."""

    count: int = 0
    retry_at: float = 0.0
    last_at: float = 0.0
    #: Why the last start failed, and how often it failed so in a row.
    reason: str = ""
    equal_failures: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """A model's bounds and its workers' patience, resolved for this machine. Times in seconds."""

    min_workers: int
    max_workers: int
    start_timeout_s: float
    drain_timeout_s: float
    lost_after_s: float
