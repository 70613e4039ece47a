"""Workers and balancer as processes of this machine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.cli import to_yaml
from configs.paths import log_dir, run_dir, worker_address
from configs.schema import Settings
from controller.launchers import Poll
from controller.launchers.processes import Processes
from controller.replica import Child

BALANCER = "loadbalancer"


class LocalLauncher:
    """Implements `Launcher` with one subprocess per worker; starts the balancer in the same way."""

    def __init__(self, settings: Settings, python: str = sys.executable) -> None:
        """`python` runs the programs."""
        self._python = python
        self._data_dir = settings.data_dir.resolve()
        self._address = worker_address(settings.data_dir)
        self._settings = settings
        self._processes = Processes(run_dir(settings.data_dir) / "children", log_dir(settings.data_dir))
        self._config = run_dir(settings.data_dir) / "config.yaml"

    def prepare(self) -> list[Child]:
        """Write the configuration for the children, and adopt those that are still there."""
        self._config.write_text(to_yaml(self._settings), encoding="utf-8")
        return self._processes.adopt()

    def start(self, worker: str, model: str, device: str) -> None:
        """A worker process, pinned to its device."""
        options = ["--id", worker, "--model", model, "--device", device, "--connect", self._address]
        self._processes.spawn(worker, model, device, self._command("worker", options), self._environment(device))

    def start_balancer(self) -> None:
        """The balancer, if there is none."""
        server = self._settings.server
        options = ["--host", server.host, "--port", str(server.port)]
        self._processes.spawn(BALANCER, "", "", self._command("loadbalancer", options), self._environment(""))

    def drain(self, worker: str, *, hurry: bool = False) -> None:
        """SIGTERM: finish and go. SIGUSR1: hand everything back and go."""
        self._processes.signal(worker, signal.SIGUSR1 if hurry else signal.SIGTERM)

    def kill(self, worker: str) -> None:
        """SIGKILL."""
        self._processes.signal(worker, signal.SIGKILL)

    def poll(self) -> Poll:
        """Every process, the balancer among them."""
        return self._processes.poll()

    def _command(self, program: str, options: Sequence[str]) -> list[str]:
        common = ["--config", str(self._config), "--data-dir", str(self._data_dir)]
        return [self._python, "-m", program, *common, *options]

    def _environment(self, device: str) -> dict[str, str]:
        """Ours without `MUSTER_*`, which the written configuration already holds; pinned to the device."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("MUSTER_")}
        # The programs are found from whatever folder the user is in.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), env.get("PYTHONPATH")]))
        kind, _, number = device.partition(":")
        if kind == "cuda":
            return env | {"CUDA_VISIBLE_DEVICES": number, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        # One thread each: with two, workers that share the cores wait for one another at every operator.
        return env | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
