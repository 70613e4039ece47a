"""Implements `Launcher` with one detached actor per worker on a Ray cluster.

Ray never restarts an actor: the planner decides what follows an exit. A record on disk for each worker outlives the
controller; the next one adopts the actors that have a record, and kills those that have none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import time
from collections.abc import Sequence

from configs.devices import kind_of, machine_of, on_machine
from configs.logs import start_failure
from configs.settings import Settings
from controller.config_diff import generation
from controller.launchers.ray.cluster_nodes import ClusterNodes
from controller.launchers.ray.gateway_process import GatewayProcess
from controller.launchers.ray.messages import (
    ClusterJoined,
    Event,
    GatewayFailed,
    KillActor,
    NodesListed,
    RequestCapacity,
    Resources,
    SignalWorker,
    WorkerEnded,
    WorkerStarted,
)
from controller.launchers.ray.start_orders import start_order
from controller.launchers.ray.worker_keys import WorkerKeys
from controller.launchers.ray.worker_records import ActorRecords, record_of
from controller.planning.machines import Machine
from host.types import Exit, PollResult, WorkerProcess

log = logging.getLogger("controller")


class RayLauncher:
    """Owns the workers on the cluster. `poll` drives everything; no method waits for Ray."""

    def __init__(self, settings: Settings, gateway: GatewayProcess) -> None:
        self._settings = settings
        self._gateway = gateway
        self._keys = WorkerKeys(settings.data_dir)
        self._records = ActorRecords(settings.data_dir)
        records = self._records.load()
        self._children: dict[str, WorkerProcess] = {record.id: record.process() for record in records}
        self._node_of = {record.id: record.node for record in records}
        self._nodes = ClusterNodes({record.node: machine_of(record.device) for record in records})
        #: Orders that a later gateway gets again: workers to kill, and the last signal of draining ones.
        self._killed: set[str] = set()
        self._signals: dict[str, signal.Signals] = {}
        self._requested: Sequence[Resources] = ()
        #: When the nodes were listed.
        self._listed_at = float("-inf")
        #: This machine's address in the cluster; empty while the gateway is not connected.
        self._address = ""
        self._exits: list[Exit] = []
        #: Why the gateway has failed since it was connected; None if it has not.
        self.failure: GatewayFailed | None = None

    @property
    def is_joined(self) -> bool:
        """Whether the gateway is connected."""
        return self._address != ""

    @property
    def has_workers(self) -> bool:
        return bool(self._children)

    @property
    def has_nodes(self) -> bool:
        """Whether the nodes of the cluster are known and examined."""
        return self.is_joined and self._nodes.are_examined

    def __contains__(self, worker: str) -> bool:
        return worker in self._children

    def has_machine(self, machine: str) -> bool:
        """Return whether this is a live node."""
        return self._nodes.node_of(machine) is not None

    def close(self) -> None:
        """End the gateway. The workers go on, for the next controller."""
        self._gateway.close()

    def update_settings(self, settings: Settings) -> None:
        """Start workers with these settings from now on."""
        self._settings = settings

    def start(self, worker: str, model: str, device: str, *, standby: bool = False) -> None:
        """Start a worker on the device's node. Raises `OSError` if there is no such node, or no cluster."""
        if standby:  # an actor cannot be given a GPU later
            raise OSError(f"{worker} of {model} on {device}: there are no standby workers on a Ray cluster")
        if worker in self._children:
            return
        machine, kind = machine_of(device), kind_of(device)
        node = self._nodes.node_of(machine)
        if not self.is_joined or node is None:
            what = f"has no node {machine}" if self.is_joined else "does not answer"
            raise OSError(f"the Ray cluster {what}")
        key = self._keys.create(worker)
        order = start_order(
            self._settings,
            worker,
            model,
            device,
            node=node,
            resources=self._nodes.resources(machine, kind),
            key=key,
            address=self._address,
        )
        child = WorkerProcess(worker, model, device, 0, time.monotonic(), generation=generation(self._settings, model))
        self._records.write(record_of(child, node))
        self._children[worker], self._node_of[worker] = child, node
        self._gateway.send(order)

    def activate(self, worker: str, device: str) -> None:
        """Do nothing: there are no standby workers."""

    def drain(self, worker: str, *, immediate: bool = False) -> None:
        """Send SIGTERM to drain, or SIGUSR1 to return all tasks at once."""
        child = self._children.get(worker)
        if child is None:
            return
        signum = signal.SIGUSR1 if immediate else signal.SIGTERM
        self._signals[worker] = signum
        self._gateway.send(SignalWorker(worker, signum))
        if child.drained_at is None:
            self._replace(dataclasses.replace(child, drained_at=time.monotonic()))

    def kill(self, worker: str) -> None:
        """Kill the actor, and so the worker."""
        if worker in self._children:
            self._killed.add(worker)
            self._gateway.send(KillActor(worker))

    def request_workers(self, workers: int) -> None:
        """Ask the cluster's autoscaler for room for so many workers, if the number has changed.

        Ray keeps a request until the next one, so that a smaller one lets it remove nodes.
        """
        bundles = self._nodes.bundles(self._settings, workers)
        if bundles != self._requested:
            self._requested = bundles
            self._gateway.send(RequestCapacity(bundles))

    def machines(self, now: float) -> list[Machine]:
        """Return the live nodes; all are silent while the cluster does not answer."""
        silent = now - self._listed_at > self._settings.workers.lost_after_s
        return self._nodes.machines(self._settings, self._listed_at, silent=silent)

    def poll(self) -> PollResult:
        """Handle the events of the gateway."""
        now = time.monotonic()
        for event in self._gateway.poll(now):
            self._handle(event, now)
        exits, self._exits = self._exits, []
        if exits:
            self._forget([ended.process.id for ended in exits])
        return PollResult(list(self._children.values()), exits)

    def _handle(self, event: Event, now: float) -> None:
        match event:
            case ClusterJoined():
                self._reconcile(event, now)
            case NodesListed(nodes, probes):
                self._nodes.update(nodes, probes)
                self._listed_at = now
            case WorkerStarted(worker, pid, gpus):
                self._on_started(worker, pid, gpus)
            case WorkerEnded():
                self._on_ended(event, now)
            case GatewayFailed(reason):
                if self.failure is None or self.failure.reason != reason:
                    log.error("the Ray cluster cannot be used: %s; trying again", reason)
                self.failure, self._address = event, ""

    def _reconcile(self, joined: ClusterJoined, now: float) -> None:
        """Compare the workers with the actors that there are."""
        if self.failure is not None:
            log.info("the Ray cluster answers again")
        self.failure, self._address = None, joined.address
        for worker in self._children.keys() - set(joined.workers):
            self._on_ended(WorkerEnded(worker, reason="its actor was gone when the Ray cluster answered again"), now)
        for worker in joined.workers:
            if worker not in self._children or worker in self._killed:
                self._gateway.send(KillActor(worker))
            elif worker in self._signals:
                self._gateway.send(SignalWorker(worker, self._signals[worker]))
        self._gateway.send(RequestCapacity(self._requested))

    def _on_started(self, worker: str, pid: int, gpus: Sequence[str]) -> None:
        child = self._children.get(worker)
        if child is not None:
            device = child.device
            if kind_of(device) == "cuda" and len(gpus) == 1 and gpus[0].isdecimal():
                device = on_machine(machine_of(device), f"cuda:{gpus[0]}")
            self._replace(dataclasses.replace(child, pid=pid, device=device))

    def _on_ended(self, ended: WorkerEnded, now: float) -> None:
        child = self._children.pop(ended.worker, None)
        if child is None:
            return
        lines = [text for text in (ended.tail, ended.reason) if text]
        status = -signal.SIGKILL if ended.status is None and ended.worker in self._killed else ended.status
        node_lost = ended.node_lost or (bool(ended.reason) and not self._nodes.is_live(self._node_of[ended.worker]))
        if ended.reason and ended.worker not in self._killed:
            log.warning("worker %s: %s", ended.worker, ended.reason)
        self._exits.append(
            Exit(
                child,
                now,
                status,
                "\n".join(lines),
                start_failure(ended.tail),
                ended.has_served,
                machine_failed=node_lost,
            )
        )

    def _replace(self, child: WorkerProcess) -> None:
        self._children[child.id] = child
        with contextlib.suppress(OSError):
            self._records.write(record_of(child, self._node_of[child.id]))

    def _forget(self, workers: Sequence[str]) -> None:
        for worker in workers:
            self._node_of.pop(worker, None)
            self._signals.pop(worker, None)
            self._killed.discard(worker)
            self._records.delete(worker)
        try:
            self._keys.remove(workers)
        except OSError as error:
            log.warning("the keys of %s stay allowed: %s", ", ".join(workers), error)
