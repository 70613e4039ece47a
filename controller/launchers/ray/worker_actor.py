"""The actor that runs one worker on a node of the cluster. It needs the standard library only.

Ray sends this class by value, so that a node needs no Muster in the environment of Ray. The worker is a child of the
actor and dies with it (see `process_supervisor`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

_TAIL_LINES, _TAIL_BYTES = 30, 8192
#: An actor without a worker ends after this time: the program that made it, or that waits for its end, is gone.
_IDLE_S = 60.0
#: What Ray sets in the environment of its processes; the token of the cluster among it.
_OF_RAY = ("RAY_", "MUSTER_")


class WorkerActor:
    """Runs one worker process. All methods are called in the actor's event loop."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._is_up = asyncio.Event()
        self._ended: asyncio.Future[dict[str, Any]] | None = None
        self._idle = threading.Timer(_IDLE_S, os._exit, (0,))
        self._idle.daemon = True
        self._idle.start()

    async def start(self, order: dict[str, Any]) -> dict[str, Any]:
        """Start the worker. Return its process id and the GPUs that Ray gave it. Raises `OSError`."""
        self._ended = asyncio.get_running_loop().create_future()
        data = Path(order["data_dir"]).expanduser()
        logs = data / "logs"
        for folder in (data, logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        run = Path(tempfile.mkdtemp(prefix="muster-worker-"))  # mode 0700
        for name, text in order["files"].items():
            (run / name).touch(mode=0o600)
            (run / name).write_text(text, encoding="utf-8")
        log = logs / f"{order['worker'].replace(':', '.')}.log"
        python = order["python"] or sys.executable
        values = {"{run}": str(run), "{data}": str(data), "{gpu}": (_gpus() or ["0"])[0]}
        command = [python, *order["command"]]
        for name, text in values.items():
            command = [word.replace(name, text) for word in command]
        self._process = subprocess.Popen(  # noqa: S603 - the controller's own command
            [sys.executable, "-I", "-S", str(run / "process_supervisor.py"), str(log), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(order["environment"]),
        )
        self._idle.cancel()
        self._pid = int((await self._message()).get("pid", 0))
        self._is_up.set()
        self._watching = asyncio.ensure_future(self._watch(log, data, order["worker"]))
        return await self.describe()

    async def describe(self) -> dict[str, Any]:
        await self._is_up.wait()
        return {"pid": self._pid, "gpus": _gpus()}

    async def signal(self, signum: int) -> None:
        """Send the signal, once the worker runs."""
        await self._is_up.wait()
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it has just ended
                self._process.stdin.write(f"{signum}\n".encode())
                self._process.stdin.flush()

    async def wait(self) -> dict[str, Any]:
        """Return how the worker has ended, when it has."""
        await self._is_up.wait()
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    async def _watch(self, log: Path, data: Path, worker: str) -> None:
        status = (await self._message()).get("status")
        served = data / "run" / "children" / f"{worker}.served"
        ended = {"status": status, "tail": _tail(log), "has_served": served.exists()}
        served.unlink(missing_ok=True)
        assert self._ended is not None
        self._ended.set_result(ended)
        self._idle = threading.Timer(_IDLE_S, os._exit, (0,))
        self._idle.daemon = True
        self._idle.start()

    async def _message(self) -> dict[str, Any]:
        """Return the next message of the supervisor; empty if it is gone."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        found: dict[str, Any] = json.loads(line) if line else {}
        return found


def _gpus() -> list[str]:
    """Return the GPUs that Ray has given to this actor."""
    return [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]


def _environment(own: dict[str, str]) -> dict[str, str]:
    """Return the worker's environment. An empty text removes a variable."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(_OF_RAY)}
    return {name: text for name, text in (kept | own).items() if text or name == "CUDA_VISIBLE_DEVICES"}


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL_BYTES, 0))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-_TAIL_LINES:])
    except OSError:
        return ""
