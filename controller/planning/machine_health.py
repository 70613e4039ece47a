"""Failures of machines: silence, and crashes on several of a machine's devices. Pure.

A machine that falls silent has one failure, however many workers it had. After three failures in a row its return
counts only after some minutes. The same holds for crashes on several devices of one machine, if the model is not the
cause: that is so if a model that crashed there serves on another machine, and crashed on no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from configs.devices import machine_of
from controller.planning.crash_backoff import doubled_s
from controller.planning.device_health import DeviceHealth
from controller.planning.machines import Machine
from controller.types import Replica
from host.types import Exit, WorkerProcess

_FAILURES = 3
#: A failure this long after the last one starts a new row.
_SAME_ROW_S = 1800.0
_FIRST_QUARANTINE_S = 60.0
_MAX_QUARANTINE_S = 1800.0
#: Workers that started before a silence, and that end up to this long after it, ended with their machine.
_RETURN_S = 60.0


@dataclass(frozen=True, slots=True)
class SilenceRecord:
    """The silences of one machine. Times are on the controller's clock."""

    #: When the current silence was noticed; None: the machine is not silent.
    since: float | None = None
    #: When the last silence ended.
    ended_at: float = float("-inf")
    #: Silences in a row.
    count: int = 0
    #: No worker is planned there before this time.
    until: float = 0.0


class MachineHealth:
    """The machines as last reported, with their failures so far."""

    def __init__(self) -> None:
        #: The machines as last reported.
        self.reported: Sequence[Machine] = ()
        self._records: dict[str, SilenceRecord] = {}
        self._crashes = DeviceHealth(place_of=machine_of, min_devices=2)

    def __repr__(self) -> str:
        return f"MachineHealth({sorted(machine.name for machine in self.reported)}, {self._crashes})"

    def update(self, machines: Sequence[Machine], now: float) -> None:
        """Record the state of all machines."""
        self.reported = machines
        for machine in machines:
            name, record = machine.name, self._records.get(machine.name, SilenceRecord())
            if machine.silent and record.since is None:
                in_row = now - max(record.ended_at, record.until) <= _SAME_ROW_S
                self._records[name] = replace(record, since=now, count=record.count + 1 if in_row else 1)
            elif not machine.silent and record.since is not None:
                over = record.count - _FAILURES
                wait_s = doubled_s(_FIRST_QUARANTINE_S, over, _MAX_QUARANTINE_S) if over >= 0 else 0.0
                self._records[name] = replace(record, since=None, ended_at=now, until=now + wait_s)
        for name in self._records.keys() - {machine.name for machine in machines}:
            if now - self._records[name].ended_at > _SAME_ROW_S and self._records[name].since is None:
                del self._records[name]

    def ended_with_machine(self, ended: Exit) -> bool:
        """Return whether the worker ended because its machine failed: it was silent in the meantime."""
        record = self._records.get(machine_of(ended.process.device))
        if record is None or ended.machine_failed:
            return ended.machine_failed
        return record.since is not None or (
            ended.process.started_at < record.ended_at and ended.at <= record.ended_at + _RETURN_S
        )

    def on_crash(self, process: WorkerProcess, at: float) -> None:
        """Count a crash on the worker's machine."""
        if self.reported:
            self._crashes.record(process.device, process.model, at)

    def observe(self, replicas: Sequence[Replica], now: float) -> None:
        """Begin and end quarantines. `replicas` are all workers."""
        if self._crashes.failures:
            self._crashes.update(replicas, now)

    def faults(self, now: float) -> Mapping[str, str]:
        """Return the machines on which nothing is planned, with the reason."""
        found = self._crashes.quarantined(now) if self._crashes.failures else {}
        for machine in self.reported:
            name, record = machine.name, self._records.get(machine.name, SilenceRecord())
            if machine.silent and machine.last_report_at is not None:
                found[name] = f"{name} has sent nothing for {max(now - machine.last_report_at, 0.0):.0f} s"
            elif machine.refused_reason:
                found[name] = machine.refused_reason
            elif now < record.until:
                found[name] = f"{name} was silent {record.count} times in a row; used in {record.until - now:.0f} s"
        return found
