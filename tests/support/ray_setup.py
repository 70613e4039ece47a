"""The launcher for a Ray cluster, with a cluster of its own."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.settings import Settings
from controller.launchers import Launcher
from controller.launchers.ray.launcher import RayLauncher
from controller.launchers.ray.setup import ray_launcher
from host.types import PollResult
from scripts.harness.processes import ROOT, free_port, wait_until
from tests.support.ray_cluster import RayCluster, ray_cluster, ray_python


class RaySetup:
    """Launchers for one cluster, one after the other."""

    prefix = ""
    has_standby = False

    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        self._settings = settings
        self._environment = environment
        self._launcher: RayLauncher | None = None
        self.restart()
        self.machine = self.ray.machines(0.0)[-1].name

    @property
    def ray(self) -> RayLauncher:
        assert self._launcher is not None
        return self._launcher

    @property
    def launcher(self) -> Launcher:
        return self.ray

    def poll(self) -> PollResult:
        return self.ray.poll()

    def restart(self) -> None:
        self.close()
        launcher = ray_launcher(self._settings, self._environment)
        self._launcher = launcher

        def has_nodes() -> bool:
            assert not launcher.poll().exits
            assert launcher.failure is None, launcher.failure
            return launcher.has_nodes

        wait_until(has_nodes, "the nodes of the cluster")

    def close(self) -> None:
        if self._launcher is not None:
            self._launcher.close()


def ray_section(cluster: RayCluster, python: str) -> dict[str, Any]:
    """Return the sections of a configuration for workers on the cluster, in the environment of the tests."""
    return {
        "launcher": "ray",
        "ray": {
            "address": cluster.address,
            "python": python,
            "worker_python": sys.executable,
            "environment": {"PYTHONPATH": str(ROOT)},
        },
        "workers": {"listen": f"tcp://127.0.0.1:{free_port()}"},
    }


@contextlib.contextmanager
def ray_setup(folder: Path) -> Iterator[RaySetup]:
    from tests.support.launchers import settings_in

    python = ray_python()
    with ray_cluster(python, nodes=1, gpus=16) as cluster:
        sections = ray_section(cluster, python)
        sections["ray"]["data_dir"] = str(folder / "node")
        settings = settings_in(folder, **sections)
        setup = RaySetup(settings, dict(os.environ) | cluster.environment)
        try:
            yield setup
        finally:
            setup.close()
