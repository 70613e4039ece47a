"""Command lines and environments of the programs that a launcher starts on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from configs.paths import run_dir
from configs.settings import Settings
from configs.worker_packages import link_packages


class ProgramCommand(NamedTuple):
    """What starts a process: its arguments and its environment."""

    arguments: list[str]
    environment: dict[str, str]


class WorkerCommands:
    """The commands of all programs that share a data directory and a configuration file."""

    def __init__(self, data_dir: Path, config: Path, balancer: Sequence[str], python: str = sys.executable) -> None:
        """`balancer` are the options by which a worker finds it; `python` is the interpreter of the programs."""
        self._data_dir = data_dir
        self._config = config
        self._balancer = list(balancer)
        self._python = python

    def program(self, name: str, options: Sequence[str]) -> ProgramCommand:
        """Return the command of another program, without a device."""
        return ProgramCommand(self._command(name, options), self._environment(""))

    def worker(
        self, settings: Settings, worker: str, model: str, device: str, *, standby: bool = False
    ) -> ProgramCommand:
        """Return the command of a worker in the environment of its engine. Raises `OSError`.

        The device of a standby worker is the kind of the device that it waits for.
        """
        options = ["--id", worker, "--model", model, "--device", device, *self._balancer]
        options += ["--standby"] if standby else []
        python = settings.models[model].python
        environment = self._environment(device, own_packages=python is not None)
        if python is None:
            return ProgramCommand(self._command("worker", options), environment)
        return ProgramCommand([str(python), *self._command("worker.bootstrap", options)[1:]], environment)

    def _command(self, program: str, options: Sequence[str]) -> list[str]:
        common = ["--config", str(self._config), "--data-dir", str(self._data_dir)]
        return [self._python, "-m", program, *common, *options]

    def _environment(self, device: str, *, own_packages: bool = False) -> dict[str, str]:
        """Return the environment for the device, without `MUSTER_*` variables: the configuration file has them."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("MUSTER_")}
        # The programs must be importable from any working directory.
        source = Path(__file__).parents[1]
        if own_packages:
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
