"""Workers and balancer as processes of this machine."""

from __future__ import annotations

import os
import signal
import sys

from configs.cli import to_yaml
from configs.fields import Tree
from configs.files import atomic_write
from configs.paths import children_dir, controller_pid_file, log_dir, run_dir, worker_address
from configs.settings import Settings
from configs.yaml_file import InvalidYaml, parse_yaml
from controller.config_diff import generation
from host.processes import Processes
from host.types import WorkerProcess
from host.worker_commands import WorkerCommands

BALANCER = "loadbalancer"
#: Settings that only the controller reads: a change does not outdate children.
_OWN_KEYS = frozenset({"data_dir", "min_workers", "max_workers", "devices", "launcher", "ray"})
_OWN_WORKERS_KEYS = frozenset({"start_timeout_s", "max_starting", "share_after_s"})


class LocalLauncher:
    """Implements `Launcher` with one subprocess per worker; starts the balancer in the same way."""

    def __init__(self, settings: Settings, python: str = sys.executable) -> None:
        """`python` is the interpreter of the programs."""
        self._data_dir = settings.data_dir.resolve()
        self._settings = settings
        self._processes = Processes(children_dir(settings.data_dir), log_dir(settings.data_dir), settings.logging)
        #: Poll every process, including the balancer.
        self.poll = self._processes.poll
        #: Bound the logs of running processes. Cheap if it was just done.
        self.rotate_logs = self._processes.rotate_logs
        #: Write the device to the standby worker's file, and send it SIGUSR2.
        self.activate = self._processes.activate
        self._config = run_dir(settings.data_dir) / "config.yaml"
        balancer = ["--connect", worker_address(settings.data_dir)]
        self._commands = WorkerCommands(self._data_dir, self._config, balancer, python)

    def prepare(self) -> tuple[list[WorkerProcess], bool]:
        """Write the configuration for the children, and adopt running ones.

        Return the adopted processes, and whether they were drained because their configuration differs.
        """
        atomic_write(controller_pid_file(self._data_dir), str(os.getpid()).encode("ascii"))
        text = to_yaml(self._settings)
        adopted = self._processes.adopt()
        outdated = bool(adopted) and _read_by_children(text) != _read_by_children(self._last_config())
        if outdated:
            for child in adopted:
                self.drain(child.id)
        atomic_write(self._config, text.encode())
        return adopted, outdated

    def update_settings(self, settings: Settings) -> None:
        """Start workers with these settings from now on. Raises `OSError` without a change."""
        atomic_write(self._config, to_yaml(settings).encode())
        self._settings = settings

    def _last_config(self) -> str:
        try:
            return self._config.read_text(encoding="utf-8")
        except OSError:
            return ""

    def start(self, worker: str, model: str, device: str, *, standby: bool = False) -> None:
        """Start a worker process, pinned to its device. A standby worker gets one when it is activated."""
        command, env = self._commands.worker(self._settings, worker, model, device, standby=standby)
        settings = generation(self._settings, model)
        self._processes.spawn(worker, model, device, command, env, generation=settings, spare=standby)

    def start_balancer(self) -> None:
        """Start the balancer unless it runs."""
        server = self._settings.server
        options = ["--host", server.host, "--port", str(server.port)]
        self._processes.spawn(BALANCER, "", "", *self._commands.program("loadbalancer", options))

    def drain(self, worker: str, *, immediate: bool = False) -> None:
        """Send SIGTERM to drain, or SIGUSR1 to return all tasks at once.

        The balancer gets SIGUSR1: a second SIGTERM would end its requests, and a service manager may have sent one.
        """
        self._processes.signal(worker, signal.SIGUSR1 if immediate or worker == BALANCER else signal.SIGTERM)

    def kill(self, worker: str) -> None:
        """Send SIGKILL."""
        self._processes.signal(worker, signal.SIGKILL)


def _read_by_children(text: str) -> Tree:
    """Return the part of the configuration that the children read."""
    try:
        tree: Tree = parse_yaml(text).value or {}
    except InvalidYaml:  # another version wrote it, or it is damaged
        return {}
    models = {
        name: {key: part for key, part in model.items() if key not in ("scaling", "gpu_memory")}
        for name, model in tree.get("models", {}).items()
    }
    workers = {key: value for key, value in (tree.get("workers") or {}).items() if key not in _OWN_WORKERS_KEYS}
    others = {key: part for key, part in tree.items() if key not in _OWN_KEYS}
    return others | {"models": models, "workers": workers}
