"""Workers and balancer as processes of this machine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.cli import to_yaml
from configs.fields import Tree
from configs.files import atomic_write
from configs.paths import children_dir, controller_pid_file, log_dir, run_dir, worker_address
from configs.settings import Settings
from configs.worker_packages import link_packages
from configs.yaml_file import InvalidYaml, parse_yaml
from controller.config_diff import generation
from controller.launchers import PollResult
from controller.launchers.processes import Processes
from controller.types import WorkerProcess

BALANCER = "loadbalancer"
#: Settings that only the controller reads: a change does not outdate children.
_OWN_KEYS = frozenset({"data_dir", "min_workers", "max_workers", "devices"})


class LocalLauncher:
    """Implements `Launcher` with one subprocess per worker; starts the balancer in the same way."""

    def __init__(self, settings: Settings, python: str = sys.executable) -> None:
        """`python` is the interpreter of the programs."""
        self._python = python
        self._data_dir = settings.data_dir.resolve()
        self._address = worker_address(settings.data_dir)
        self._settings = settings
        self._processes = Processes(children_dir(settings.data_dir), log_dir(settings.data_dir), settings.logging)
        self._config = run_dir(settings.data_dir) / "config.yaml"

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

    def start(self, worker: str, model: str, device: str) -> None:
        """Start a worker process, pinned to its device."""
        options = ["--id", worker, "--model", model, "--device", device, "--connect", self._address]
        command, env = self._worker_command(model, options), self._environment(device, model)
        self._processes.spawn(worker, model, device, command, env, generation=generation(self._settings, model))

    def start_spare(self, worker: str, model: str, kind: str) -> None:
        """Start a standby worker. It gets a device of this kind when it is activated."""
        options = ["--id", worker, "--model", model, "--device", kind, "--connect", self._address, "--standby"]
        command = self._worker_command(model, options)
        env, settings = self._environment(kind, model), generation(self._settings, model)
        self._processes.spawn(worker, model, kind, command, env, generation=settings, spare=True)

    def activate(self, worker: str, device: str) -> None:
        """Write the device to the standby worker's file, and send it SIGUSR2."""
        self._processes.activate(worker, device)

    def start_balancer(self) -> None:
        """Start the balancer unless it runs."""
        server = self._settings.server
        options = ["--host", server.host, "--port", str(server.port)]
        self._processes.spawn(BALANCER, "", "", self._command("loadbalancer", options), self._environment(""))

    def drain(self, worker: str, *, immediate: bool = False) -> None:
        """Send SIGTERM to drain, or SIGUSR1 to return all tasks at once.

        The balancer gets SIGUSR1: a second SIGTERM would end its requests, and a service manager may have sent one.
        """
        self._processes.signal(worker, signal.SIGUSR1 if immediate or worker == BALANCER else signal.SIGTERM)

    def kill(self, worker: str) -> None:
        """Send SIGKILL."""
        self._processes.signal(worker, signal.SIGKILL)

    def rotate_logs(self) -> None:
        self._processes.rotate_logs()

    def poll(self) -> PollResult:
        """Poll every process, including the balancer."""
        return self._processes.poll()

    def _command(self, program: str, options: Sequence[str]) -> list[str]:
        common = ["--config", str(self._config), "--data-dir", str(self._data_dir)]
        return [self._python, "-m", program, *common, *options]

    def _worker_command(self, model: str, options: Sequence[str]) -> list[str]:
        """Return the command of a worker in the environment of its engine, or in this one."""
        python = self._settings.models[model].python
        if python is None:
            return self._command("worker", options)
        return [str(python), *self._command("worker.bootstrap", options)[1:]]

    def _environment(self, device: str, model: str = "") -> dict[str, str]:
        """Return the environment for the device, without `MUSTER_*` variables: the configuration file has them."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("MUSTER_")}
        # The programs must be importable from any working directory.
        source = Path(__file__).parents[2]
        if model and self._settings.models[model].python is not None:
            source = link_packages(source, run_dir(self._data_dir) / "python")
            env.pop("PYTHONHOME", None)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(source), env.get("PYTHONPATH")]))
        kind, _, number = device.partition(":")
        if kind == "cuda" and not number:
            # Torch then checks for GPUs by NVML. A CUDA initialization would fix the set of visible GPUs too early.
            return env | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if kind == "cuda":
            return env | {"CUDA_VISIBLE_DEVICES": number, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        # One thread per worker: with more, workers on shared cores wait for each other at every operator.
        return env | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


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
    return {key: part for key, part in tree.items() if key not in _OWN_KEYS} | {"models": models}
