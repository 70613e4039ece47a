"""Runs `python -m controller replay` for the page: one bounded process at a time, which ends with its reader."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import msgspec

from loadbalancer.background_tasks import TaskSupervisor
from wire.simulation import SimulationRefused, SimulationReply, SimulationRequest

_COMMAND = (sys.executable, "-m", "controller", "replay")
_ROOT = Path(__file__).resolve().parents[2]
#: What the interpreter needs of the environment. API keys of upstream servers stay out of the process.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "VIRTUAL_ENV", "TZ")
#: Seconds by the clock for each second of CPU time: the process gives way to the server.
_CLOCK_FACTOR = 5.0
_MAX_LINE_BYTES = 1 << 20
_MAX_OUTPUT_BYTES = 16 << 20
_REPLIES = msgspec.json.Decoder(SimulationReply)


class SimulationRunning(Exception):
    """Another simulation has not ended yet."""


class SimulationFailed(Exception):
    """The process refuses the request, or it has died; the text is for the user."""

    def __init__(self, text: str, *, is_refused: bool = False) -> None:
        super().__init__(text)
        self.is_refused = is_refused


class SettingsSimulator:
    """Starts the processes. All methods are called in the event loop."""

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self._command = command
        self._tasks = TaskSupervisor()
        self._running: SimulationProcess | None = None
        self._is_starting = False
        self.task_failures = self._tasks.failures

    async def start(self, request: SimulationRequest) -> SimulationProcess:
        """Start a simulation and wait for its first reply. Raises `SimulationRunning` and `SimulationFailed`."""
        if self._running is not None or self._is_starting:
            raise SimulationRunning
        self._is_starting = True
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(os.environ),
                limit=_MAX_LINE_BYTES,
            )
        finally:
            self._is_starting = False
        self._running = started = SimulationProcess(process, request)
        self._tasks.run_to_completion("simulation", self._wait(started))
        try:
            await started.begin()
        except BaseException:
            started.kill()
            raise
        return started

    async def stop(self) -> None:
        """End the running process. Idempotent."""
        if self._running is not None:
            self._running.kill()
            await self._running.wait()
        await self._tasks.stop()

    async def _wait(self, process: SimulationProcess) -> None:
        await process.wait()
        self._running = None


class SimulationProcess:
    """A running simulation: its first reply, then the others."""

    def __init__(self, process: asyncio.subprocess.Process, request: SimulationRequest) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        self._request = request
        self._deadline = asyncio.get_running_loop().time() + _CLOCK_FACTOR * request.max_cpu_s
        self._received = 0
        self._first: SimulationReply | None = None

    async def begin(self) -> None:
        """Send the request, and read the first reply. Raises `SimulationFailed`."""
        with contextlib.suppress(ConnectionError):
            self._stdin.write(msgspec.json.encode(self._request))
            await self._stdin.drain()
        self._stdin.close()
        self._first = await self._read()
        if self._first is None:
            raise await self._failure()

    async def replies(self) -> AsyncIterator[SimulationReply]:
        """Yield the first reply again, and the others until the process ends. Raises `SimulationFailed`."""
        reply = self._first
        while reply is not None:
            yield reply
            reply = await self._read()
        if await self._process.wait() != 0:
            raise await self._failure()

    def kill(self) -> None:
        """End the process at once. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> None:
        """Return when the process has ended."""
        await self._process.wait()

    async def _read(self) -> SimulationReply | None:
        """Return the next reply; None at the end of the output."""
        try:
            async with asyncio.timeout_at(self._deadline):
                line = await self._stdout.readline()
            self._received += len(line)
            if self._received > _MAX_OUTPUT_BYTES:
                raise ValueError(f"more than {_MAX_OUTPUT_BYTES} bytes")
            reply = _REPLIES.decode(line) if line else None
        except TimeoutError:
            raise SimulationFailed("The simulation takes too long. Choose a shorter time.") from None
        except (ValueError, msgspec.MsgspecError) as error:
            raise SimulationFailed(f"The simulation has an invalid output: {error}.") from None
        if isinstance(reply, SimulationRefused):
            raise SimulationFailed(reply.message, is_refused=True)
        return reply

    async def _failure(self) -> SimulationFailed:
        status = await self._process.wait()
        if status == -signal.SIGXCPU:
            seconds = self._request.max_cpu_s
            return SimulationFailed(f"The simulation needs more than {seconds} s of CPU time. Choose a shorter time.")
        return SimulationFailed(f"The simulation has ended with status {status}. The server's log may say why.")


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    found = {name: own[name] for name in _ENVIRONMENT if name in own}
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), own.get("PYTHONPATH")]))
    # One thread: libraries of numbers would start one per core, each with memory of its own.
    return found | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
