"""The server under trouble: a controller with all that it has started, in a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil
import yaml

from configs.paths import internal_token, keys_file, log_dir, run_dir
from controller.launchers.local import BALANCER
from controller.launchers.processes import Record
from loadbalancer.access.api_keys import KEY_PREFIX, KeyRing, fingerprint
from loadbalancer.access.key_files import write
from scripts.chaos_lib.fault_plan import Trouble
from scripts.chaos_lib.profiles import OWNERS, Profile

ROOT = Path(__file__).resolve().parents[2]
#: A controller that is told to stop has promised to be gone in ten seconds; more, for the machine is busy.
_STOP_S = 60.0


class Instance:
    """Starts, hurts and stops a server on loopback."""

    def __init__(self, folder: Path, profile: Profile, port: int) -> None:
        """Write the configuration and the API keys. `folder` must be empty."""
        self.folder, self.port = folder.resolve(), port
        self._config = self.folder / "muster.yaml"
        self._config.write_text(yaml.safe_dump(profile.config()), encoding="utf-8")
        self.tokens = {name: KEY_PREFIX + secrets.token_urlsafe(32) for name in OWNERS}
        keys = {name: msgspec.structs.replace(OWNERS[name], sha256=fingerprint(self.tokens[name])) for name in OWNERS}
        write(keys_file(self.folder), msgspec.to_builtins(KeyRing(keys)))
        self.token = internal_token(self.folder)
        self._controller: subprocess.Popen[bytes]
        #: The controller is being stopped or started, by us.
        self.busy = False

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the controller; it adopts what an earlier one has left."""
        own = ["--config", str(self._config), "--port", str(self.port), "--data-dir", str(self.folder)]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MUSTER_")}
        with (log_dir(self.folder) / "controller.log").open("ab") as log:
            # Its working directory is handed down: by it every process that belongs here is known.
            self._controller = subprocess.Popen(
                [sys.executable, "-m", "controller", *own],
                cwd=self.folder,
                env=clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def records(self) -> Mapping[str, Record]:
        """The children that the controller knows, or the last one knew, by name."""
        found = {}
        for file in (run_dir(self.folder) / "children").glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):  # it is just being written, or taken away
                record = msgspec.json.decode(file.read_bytes(), type=Record)
                found[record.id] = record
        return found

    def balancer(self) -> int | None:
        """Process id of the living balancer."""
        record = self.records().get(BALANCER)
        return record.pid if record is not None and alive(record.pid) else None

    @property
    def fallen(self) -> bool:
        """Whether the controller has ended although nobody told it to."""
        return not self.busy and self._controller.poll() is not None

    async def hurt(self, trouble: Trouble) -> str:
        """Do it, and mend what the server cannot mend itself: go on after a stop, start the controller again.

        Returns whom it hit, as soon as nothing is left to mend; empty where there was nobody.
        """
        if trouble.target == "controller":
            return await self._hurt_controller(trouble)
        pids = {name: record for name, record in self.records().items() if (name == BALANCER) == _is_balancer(trouble)}
        ages = sorted((record.created, name, record.pid) for name, record in pids.items() if alive(record.pid))
        if not ages:
            return ""
        _, name, pid = ages[min(int(trouble.pick * len(ages)), len(ages) - 1)]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, trouble.how)
        if trouble.how == signal.SIGSTOP:
            await asyncio.sleep(trouble.for_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return name

    async def _hurt_controller(self, trouble: Trouble) -> str:
        if self.busy or self.fallen:
            return ""
        self.busy = True
        try:
            self._controller.send_signal(trouble.how)
            if trouble.how == signal.SIGSTOP:
                await asyncio.sleep(trouble.for_s)
                self._controller.send_signal(signal.SIGCONT)
                return "controller"
            await asyncio.to_thread(self._controller.wait, _STOP_S)
            if trouble.how == signal.SIGKILL:
                await asyncio.sleep(trouble.for_s)
            self.start()
        finally:
            self.busy = False
        return "controller"

    async def stop(self) -> list[str]:
        """Stop everything as its user would; returns what is left, which is then killed."""
        self.busy = True
        self._controller.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._controller.wait, _STOP_S)
        told = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                told.append(f"{' '.join(process.cmdline())[:120]} (process {process.pid})")
                process.kill()
        return told

    def processes(self) -> list[psutil.Process]:
        """Every living process that descends from a controller of this instance."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd() == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def alive(pid: int) -> bool:
    """Whether the process is there, and not merely waits to be fetched by its parent."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_balancer(trouble: Trouble) -> bool:
    return trouble.target == "balancer"
