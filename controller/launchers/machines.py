"""One launcher for all machines: the controller's own, the nodes of a Ray cluster, and those with an agent."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from typing import TYPE_CHECKING

from configs.devices import machine_of
from configs.model_paths import make_absolute
from configs.settings import Settings
from controller.balancer_client import AGENTS, BalancerHttpClient
from controller.config_diff import generation
from controller.launchers import Launcher
from controller.launchers.agent import AgentLauncher
from controller.launchers.local import LocalLauncher
from controller.planning.machines import Machine
from host.types import PollResult
from wire.agents import AgentExchange, ModelSettings

if TYPE_CHECKING:
    from controller.launchers.ray.launcher import RayLauncher

log = logging.getLogger("controller")

#: Settings of a model that its workers do not read. The proxy has a secret.
_NOT_READ = {"scaling", "gpu_memory", "cold_start_proxy"}
#: Settings of the section `workers` that workers read.
_READ_BY_WORKERS = {
    "heartbeat_s",
    "lost_after_s",
    "orphan_after_s",
    "drain_timeout_s",
    "drain_grace_s",
    "max_result_bytes",
}


class MachinesLauncher:
    """Implements `Launcher` for all machines. A device's name has its machine, and a worker's name begins with it."""

    def __init__(self, local: LocalLauncher, settings: Settings, cluster: RayLauncher | None = None) -> None:
        self._local = local
        self.cluster = cluster
        self._epoch = int(time.time())
        self._agents: dict[str, AgentLauncher] = {}
        #: What was logged last about each machine.
        self._problems: dict[str, str] = {}
        self._use(settings)

    def update_settings(self, settings: Settings) -> None:
        """Start workers with these settings from now on. Raises `OSError` without a change."""
        self._local.update_settings(settings)
        if self.cluster is not None:
            self.cluster.update_settings(settings)
        self._use(settings)

    def _use(self, settings: Settings) -> None:
        self._settings = settings
        #: Whether workers may run on other machines than this one.
        self.has_remote = self.cluster is not None or settings.workers.listen is not None
        self._model_settings = model_settings(settings)
        self._generations = {model: generation(settings, model) for model in settings.models}
        for agent in self._agents.values():
            agent.update_settings(self._model_settings, self._generations)

    # ---- Launcher

    def start(self, worker: str, model: str, device: str, *, standby: bool = False) -> None:
        self._of_device(device).start(worker, model, device, standby=standby)

    def activate(self, worker: str, device: str) -> None:
        self._of_worker(worker).activate(worker, device)

    def drain(self, worker: str, *, immediate: bool = False) -> None:
        self._of_worker(worker).drain(worker, immediate=immediate)

    def kill(self, worker: str) -> None:
        self._of_worker(worker).kill(worker)

    def poll(self) -> PollResult:
        """Poll every process, including the balancer."""
        launchers: list[Launcher] = [self._local, *self._agents.values()]
        if self.cluster is not None:
            launchers.insert(1, self.cluster)
        results = [launcher.poll() for launcher in launchers]
        return PollResult(
            [child for result in results for child in result.children],
            [ended for result in results for ended in result.exits],
        )

    def _of_device(self, device: str) -> Launcher:
        """Return the launcher of the device's machine. Raises `OSError` for a machine that is not known."""
        machine = machine_of(device)
        if not machine:
            return self._local
        if self.cluster is not None and self.cluster.has_machine(machine):
            return self.cluster
        if machine not in self._agents:
            raise OSError(f"the machine {machine} is not connected")
        return self._agents[machine]

    def _of_worker(self, worker: str) -> Launcher:
        agent = self._agents.get(worker.partition(":")[0]) if ":" in worker else None
        if agent is not None:
            return agent
        return self.cluster if self.cluster is not None and worker in self.cluster else self._local

    def worker_name(self, device: str, name: str) -> str:
        """Return the worker's name on the device's machine: it begins with the name of its key.

        Each worker on a Ray cluster has its own key.
        """
        machine = machine_of(device)
        on_cluster = self.cluster is not None and self.cluster.has_machine(machine)
        return f"{machine}:{name}" if machine and not on_cluster else name

    # ---- other machines

    def machines(self) -> list[Machine]:
        """Return the machines with an agent that has reported or stays away, and the nodes of the cluster."""
        found = [machine for agent in self._agents.values() if (machine := agent.machine()) is not None]
        return found if self.cluster is None else [*found, *self.cluster.machines(time.monotonic())]

    async def exchange(self, balancer: BalancerHttpClient) -> None:
        """Send the orders, and take in the reports. Without an answer nothing changes."""
        if self._settings.workers.listen is None:
            return
        orders = {name: orders for name, agent in self._agents.items() if (orders := agent.orders()) is not None}
        states = await balancer.call(AGENTS, AgentExchange(orders))
        if states is None:
            return
        for name in (states.machines.keys() | states.allowed) - self._agents.keys():
            agent = AgentLauncher(
                name, epoch=self._epoch, lost_after_s=self._settings.workers.lost_after_s, clock=time.monotonic
            )
            agent.update_settings(self._model_settings, self._generations)
            self._agents[name] = agent
        for name, agent in self._agents.items():
            agent.update(states.machines.get(name), states.uptime_s, is_allowed=name in states.allowed)
        self._log_changes()

    async def leave_agents(self, balancer: BalancerHttpClient, after_s: float) -> None:
        """Order every agent to drain its workers after this time, because the server stops.

        From then on the workers of the agents are not polled: they are on their own.
        """
        for agent in self._agents.values():
            agent.drain_all(after_s)
        await self.exchange(balancer)
        self._agents.clear()

    def _log_changes(self) -> None:
        for name, agent in self._agents.items():
            before, problem, machine = self._problems.get(name), agent.problem, agent.machine()
            if machine is None and not problem:  # it has just connected
                continue
            if problem and not before:
                log.error("the machine %s is not used: %s", name, problem)
            elif before and not problem:
                log.warning("the machine %s is used again", name)
            elif before is None:
                log.info("the machine %s has joined with %d devices", name, len(machine.devices) if machine else 0)
            self._problems[name] = problem


def model_settings(settings: Settings) -> ModelSettings:
    """Return what the agents' workers read of the settings."""
    workers = settings.workers.model_dump_json(include=_READ_BY_WORKERS)
    models = {}
    for name, model in settings.models.items():
        tree = json.loads(model.model_dump_json(exclude=_NOT_READ, exclude_none=True))
        make_absolute(tree)
        models[name] = json.dumps(tree)
    text = json.dumps([workers, models], sort_keys=True)
    return ModelSettings(hashlib.sha256(text.encode()).hexdigest()[:16], workers, models)
