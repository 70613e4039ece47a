"""The processes of this machine and the workers of a Ray cluster, behind one interface."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from configs.devices import machine_of
from configs.settings import Settings
from controller.launchers import Launcher
from controller.launchers.local import LocalLauncher
from controller.planning.machines import Machine
from host.types import PollResult

if TYPE_CHECKING:  # it needs ZeroMQ, for keys
    from controller.launchers.ray.launcher import RayLauncher


class LocalAndRayLauncher:
    """Implements `Launcher`. Without a cluster, everything is on this machine."""

    def __init__(self, local: LocalLauncher, cluster: RayLauncher | None) -> None:
        self._local = local
        self._cluster = cluster

    def update_settings(self, settings: Settings) -> None:
        """Start workers with these settings from now on. Raises `OSError` without a change."""
        self._local.update_settings(settings)
        if self._cluster is not None:
            self._cluster.update_settings(settings)

    def has_machine(self, machine: str) -> bool:
        """Return whether this is a live node of the cluster."""
        return self._cluster is not None and self._cluster.has_machine(machine)

    def machines(self) -> list[Machine]:
        """Return the nodes of the cluster."""
        return [] if self._cluster is None else self._cluster.machines(time.monotonic())

    def request_workers(self, workers: int) -> None:
        """Ask the cluster's autoscaler for room for so many workers."""
        if self._cluster is not None:
            self._cluster.request_workers(workers)

    def start(self, worker: str, model: str, device: str) -> None:
        self._of_device(device).start(worker, model, device)

    def start_spare(self, worker: str, model: str, kind: str) -> None:
        self._of_device(kind).start_spare(worker, model, kind)

    def activate(self, worker: str, device: str) -> None:
        self._of_worker(worker).activate(worker, device)

    def drain(self, worker: str, *, immediate: bool = False) -> None:
        self._of_worker(worker).drain(worker, immediate=immediate)

    def kill(self, worker: str) -> None:
        self._of_worker(worker).kill(worker)

    def poll(self) -> PollResult:
        if self._cluster is None:
            return self._local.poll()
        results = self._local.poll(), self._cluster.poll()
        return PollResult(
            [child for result in results for child in result.children],
            [ended for result in results for ended in result.exits],
        )

    def _of_device(self, device: str) -> Launcher:
        return self._cluster if self._cluster is not None and machine_of(device) else self._local

    def _of_worker(self, worker: str) -> Launcher:
        return self._cluster if self._cluster is not None and worker in self._cluster else self._local
