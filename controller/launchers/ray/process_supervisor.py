"""Runs one command, and ends it with all its descendants when standard input is closed.

    python process_supervisor.py LOG COMMAND...

An actor of Ray holds the other end of standard input, so that nothing outlives the actor, however that ends. Each line
of input is the number of a signal for the command. Output is two lines of JSON: `{"pid": 1}` at the start, and at the
end `{"status": 0}`, negative for a signal. At the end the folder of this file is deleted, which holds the worker's key.
It needs the standard library and Linux only.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
#: Descendants of the command end within this time after SIGKILL, or hang in the kernel.
_KILLED_WITHIN_S = 10.0
#: Status of a command that could not be executed, as shells have it.
_NOT_FOUND = 127
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: Sequence[str]) -> int:
    """Run the command. Return 0 when it and all its descendants have ended."""
    log, *command = argv
    # Ray kills the children of an actor that ends. This process is none, so that it can end the command properly.
    if os.fork():
        os._exit(0)
    os.setsid()
    try:
        return _run(log, command)
    finally:
        shutil.rmtree(Path(__file__).parent, ignore_errors=True)


def _run(log: str, command: Sequence[str]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    # Processes whose parent dies become children of this one, and can be found.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup, notify = os.pipe()
    os.set_blocking(notify, False)
    signal.set_wakeup_fd(notify, warn_on_full_buffer=False)
    for signum in (*_END_SIGNALS, signal.SIGCHLD):
        signal.signal(signum, lambda *_: None)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    with Path(log).open("ab", buffering=0) as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - the controller's own command
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,  # this process has one thread
            )
        except OSError as error:
            output.write(f"cannot start: {command[0]}: {error.strerror}\n".encode())
            _report({"pid": 0})
            _report({"status": _NOT_FOUND})
            return 1
    _report({"pid": process.pid, "supervisor": os.getpid()})
    _watch(process, wakeup)
    _kill_descendants(process)
    _report({"status": process.returncode})
    return 0


def _watch(process: subprocess.Popen[bytes], wakeup: int) -> None:
    """Return when the command has ended, or when it must end."""
    pending = b""
    while process.poll() is None:
        readable, _, _ = select.select([0, wakeup], [], [])
        if wakeup in readable and set(os.read(wakeup, 512)) & set(_END_SIGNALS):
            return
        if 0 in readable:
            received = os.read(0, 4096)
            if not received:
                return
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                process.send_signal(int(line))


def _kill_descendants(process: subprocess.Popen[bytes]) -> None:
    """Kill the command and everything that it has started, and collect them."""
    give_up_at = time.monotonic() + _KILLED_WITHIN_S
    while time.monotonic() < give_up_at:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)  # at least a zombie: only this process collects it
        process.poll()
        if not _collect(process.pid):
            return
        time.sleep(0.005)


def _collect(command: int) -> bool:
    """Collect ended children, except the command. Return whether any child is left."""
    for pid in _children():
        if pid != command:
            os.waitpid(pid, os.WNOHANG)
    return bool(_children())


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(stat.parent.name))
    return found


def _report(message: dict[str, int | None]) -> None:
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except OSError:  # its actor is gone
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
