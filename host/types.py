"""The processes and devices of one machine, as plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class SetupError(Exception):
    """The configuration does not suit this machine. The text says what to change."""


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A process as its launcher sees it. Times are seconds on the monotonic clock of its program."""

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
class Exit:
    """A process that has ended."""

    process: WorkerProcess
    at: float
    #: Exit status; negative for a signal; None for an adopted process, where it is unknown.
    status: int | None
    #: The last lines of its log.
    tail: str = ""
    #: The worker's own message why it could not start; empty without one.
    start_failure: str = ""
    #: It had begun to serve, maybe for less time than passes between two snapshots.
    has_served: bool = False
    #: Why it counts as ended although nobody saw its exit.
    lost_reason: str = ""
    #: It ended with its whole machine, which failed or restarted. That is no crash of its model.
    machine_failed: bool = False


class PollResult(NamedTuple):
    """The processes, and those that have exited since the last poll."""

    children: Sequence[WorkerProcess]
    exits: Sequence[Exit]


class GpuSensors(NamedTuple):
    """What a GPU measures of itself; None: the driver does not tell."""

    temperature_c: float | None = None
    power_w: float | None = None
    #: Share of the last moments in which a kernel ran.
    utilisation: float | None = None


_NO_SENSORS = GpuSensors()


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """A GPU as its driver reports it."""

    device: str
    total_bytes: int | None
    used_bytes: int = 0
    #: Memory of each process, by pid, as far as the driver reports it.
    processes: Mapping[int, int] = field(default_factory=dict)
    #: Why it cannot be used; empty if it can.
    fault: str = ""
    sensors: GpuSensors = _NO_SENSORS
