"""Child processes that survive a crash of the parent. Each has a record on disk, from which the next parent adopts it.

A process is identified by its pid, its creation time and its name in the command line. So a reused pid is never
mistaken for a child. Times on disk are seconds since boot, which stay valid when the wall clock is set. Each child runs
in its own session, so that Ctrl-C in the terminal reaches only the parent.

The parent activates a standby worker by writing its device to a file. This file is authoritative: if it exists, the
child is active, even if the parent crashed before it updated the record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from configs.files import atomic_write, open_for_append
from configs.logs import start_failure
from configs.paths import StandbyFiles, served_file, standby_files
from configs.sections import Logging
from host.log_folder import LogFolder
from host.types import Exit, PollResult, WorkerProcess

#: Two readings of one creation time differ by rounding only; the kernel counts in clock ticks of 10 ms.
_SAME_TIME_S = 0.005
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: Position of `starttime` in /proc/PID/stat after the command, which may contain blanks; see proc_pid_stat(5).
_START_TIME_FIELD = 19
#: Becomes the program that follows as soon as a line arrives. If the parent dies before its child has a record,
#: standard input ends without one, and no process is left that the next parent cannot know.
_WHEN_RECORDED = ("/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh")


class ProcessRecord(msgspec.Struct, frozen=True):
    """The record of a child on disk. Times are seconds since boot."""

    id: str
    model: str
    device: str
    pid: int
    created: float
    #: Time of its drain.
    drained: float | None = None
    #: Digest of the settings that it was started with.
    generation: str = ""
    #: Whether it is a standby worker.
    spare: bool = False
    #: Time of its activation, if it was a standby worker.
    activated: float | None = None


class Processes:
    """All children of one data directory."""

    def __init__(self, records: Path, logs: Path, logging: Logging) -> None:
        self._records = records
        self._logs = LogFolder(logs, logging)
        self._children: dict[str, WorkerProcess] = {}
        #: `psutil.Popen` for those that this parent has started.
        self._handles: dict[str, psutil.Process] = {}
        #: Activated standby workers: their start is the activation.
        self._activated: set[str] = set()
        #: Exits that no parent has noticed.
        self._ended_before: list[Exit] = []
        records.mkdir(parents=True, exist_ok=True)

    def __contains__(self, name: str) -> bool:
        return name in self._children

    def children(self) -> list[WorkerProcess]:
        """Return the processes as of the last poll."""
        return list(self._children.values())

    def adopt(self, *, report_ended: bool = False) -> list[WorkerProcess]:
        """Take over the children that an earlier parent left running.

        With `report_ended`, the next poll reports the exits of those that have ended without a parent.
        """
        adopted = []
        for file in sorted(self._records.glob("*.json")):
            record: ProcessRecord | None = None
            with contextlib.suppress(msgspec.MsgspecError, psutil.Error, OSError):
                record = msgspec.json.decode(file.read_bytes(), type=ProcessRecord)
                process = psutil.Process(record.pid)
                if _is_same(process, record):
                    child = self._as_recorded(record)
                    self._children[child.id], self._handles[child.id] = child, process
                    adopted.append(child)
                    continue
            if report_ended and record is not None:
                ended = self._exit(self._as_recorded(record), None)
                self._ended_before.append(dataclasses.replace(ended, machine_failed=True))
            self._forget(file.stem)
        return adopted

    def _as_recorded(self, record: ProcessRecord) -> WorkerProcess:
        device, activated, spare = record.device, record.activated, record.spare
        with contextlib.suppress(FileNotFoundError):
            if spare:
                device_file = self._files(record.id).device
                device = device_file.read_text(encoding="ascii")
                activated, spare = _since_boot(time.monotonic() - (time.time() - device_file.stat().st_mtime)), False
        if activated is not None:
            self._activated.add(record.id)
        drained_at = None if record.drained is None else _from_boot(record.drained)
        started_at = _from_boot(record.created if activated is None else activated)
        return WorkerProcess(
            record.id,
            record.model,
            device,
            record.pid,
            started_at,
            drained_at,
            generation=record.generation,
            spare=spare,
        )

    def spawn(
        self,
        name: str,
        model: str,
        device: str,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        generation: str = "",
        spare: bool = False,
    ) -> None:
        """Start a process unless there is one of this name. Raises `OSError` if it or its record cannot be made."""
        if name in self._children:
            return
        if shutil.which(command[0]) is None:
            raise FileNotFoundError(errno.ENOENT, "no such program, or it may not be run", command[0])
        self._logs.prune(self._children)
        with open_for_append(self._logs.path(name)) as log:
            process = psutil.Popen(
                [*_WHEN_RECORDED, *command],
                env=env,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._handles[name] = process
        self._children[name] = WorkerProcess(
            name, model, device, process.pid, time.monotonic(), generation=generation, spare=spare
        )
        try:
            self._write(name)
        except OSError:
            process.kill()
            process.wait()
            process.stdin.close()
            del self._children[name], self._handles[name]
            raise
        with contextlib.suppress(BrokenPipeError):  # it was killed meanwhile
            process.stdin.write(b"\n")
        process.stdin.close()

    def activate(self, name: str, device: str) -> None:
        """Activate a standby worker, if there is one. Raises `OSError` if its file cannot be written."""
        child = self._children.get(name)
        if child is None or not child.spare:
            return
        atomic_write(self._files(name).device, device.encode())
        self._activated.add(name)
        self._children[name] = dataclasses.replace(child, device=device, spare=False, started_at=time.monotonic())
        with contextlib.suppress(psutil.Error, OSError):
            self._write(name)
        with contextlib.suppress(psutil.Error):
            # A worker that still loads finds the file later and may not handle the signal yet.
            if child.loaded_at is not None:
                self._handles[name].send_signal(signal.SIGUSR2)

    def signal(self, name: str, signum: signal.Signals) -> None:
        """Send a signal, if there is such a process. Any but SIGKILL marks it as draining."""
        child = self._children.get(name)
        if child is None:
            return
        with contextlib.suppress(psutil.Error):
            self._handles[name].send_signal(signum)
        if child.drained_at is None and signum != signal.SIGKILL:
            self._children[name] = dataclasses.replace(child, drained_at=time.monotonic())
            with contextlib.suppress(psutil.Error, OSError):
                self._write(name)

    def rotate_logs(self) -> None:
        """Bound the logs of running children. Cheap if it was just done."""
        self._logs.rotate(self._children, time.monotonic())

    def poll(self) -> PollResult:
        """Return the running processes, and those that exited since the last poll."""
        exits, self._ended_before = self._ended_before, []
        for name, child in list(self._children.items()):
            handle, status = self._handles[name], None
            if isinstance(handle, psutil.Popen):
                status = handle.poll()
                has_ended = status is not None
            else:
                has_ended = not _is_running(handle)
            if has_ended:
                _end_group(child.pid)
                exits.append(self._exit(child, status))
                del self._children[name], self._handles[name]
                self._activated.discard(name)
                self._forget(name)
            elif child.spare and child.loaded_at is None and self._files(name).ready.exists():
                self._children[name] = dataclasses.replace(child, loaded_at=time.monotonic())
        return PollResult(list(self._children.values()), exits)

    def _exit(self, child: WorkerProcess, status: int | None) -> Exit:
        tail = self._logs.tail(child.id)
        has_served = served_file(self._records, child.id).exists()
        return Exit(child, time.monotonic(), status, tail, start_failure(tail), has_served)

    def _write(self, name: str) -> None:
        child, created = self._children[name], _created(self._handles[name])
        drained = None if child.drained_at is None else _since_boot(child.drained_at)
        activated = _since_boot(child.started_at) if name in self._activated else None
        record = ProcessRecord(
            name, child.model, child.device, child.pid, created, drained, child.generation, child.spare, activated
        )
        atomic_write(self._records / f"{name}.json", msgspec.json.encode(record))

    def _forget(self, name: str) -> None:
        """Delete the child's files, except its log. A record that stays names a process that is gone."""
        for file in (self._records / f"{name}.json", served_file(self._records, name), *self._files(name)):
            with contextlib.suppress(OSError):  # the disk is read-only, or the folder is gone
                file.unlink()

    def _files(self, name: str) -> StandbyFiles:
        return standby_files(self._records, name)


def _end_group(leader: int) -> None:
    """Kill what an ended child has left in its process group, such as processes that an engine has forked."""
    try:
        if _alive(psutil.Process(leader)):
            return  # the number is that of another process by now
    except psutil.NoSuchProcess:
        pass
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _is_same(process: psutil.Process, record: ProcessRecord) -> bool:
    """Return whether the process is alive and the one of the record."""
    if abs(_created(process) - record.created) >= _SAME_TIME_S or not _alive(process):
        return False
    # A process whose main thread has exited has no command line.
    return process.status() == psutil.STATUS_ZOMBIE or record.id in " ".join(process.cmdline()).split()


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and _alive(process)
    except psutil.NoSuchProcess:
        return False


def _alive(process: psutil.Process) -> bool:
    """Return whether the process has a running thread. Raises `psutil.NoSuchProcess`.

    If the main thread exits first, the process is shown as a zombie while other threads still hold its port and locks.
    """
    return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1


def _created(process: psutil.Process) -> float:
    """Return the creation time in seconds since boot. Raises `psutil.NoSuchProcess`.

    `psutil.Process.create_time` is on the wall clock, so it changes when the clock is set.
    """
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(process.pid) from None
    return int(text.rpartition(")")[2].split()[_START_TIME_FIELD]) / _TICKS_PER_S


def _since_boot(at: float) -> float:
    """Convert the monotonic clock to seconds since boot."""
    return at - time.monotonic() + time.clock_gettime(time.CLOCK_BOOTTIME)


def _from_boot(at: float) -> float:
    """Convert seconds since boot to the monotonic clock."""
    return at + time.monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME)
