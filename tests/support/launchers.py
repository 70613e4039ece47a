"""Launchers under test, behind one interface: each runs real workers of simulated models."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from configs.load import load
from configs.paths import internal_token
from configs.settings import Settings
from configs.yaml_file import dump_yaml
from controller.balancer_client import AGENTS, BalancerHttpClient
from controller.config_diff import generation
from controller.launchers import Launcher
from controller.launchers.agent import AgentLauncher
from controller.launchers.local import LocalLauncher
from controller.launchers.machines import model_settings
from host.types import Exit, PollResult, WorkerProcess
from scripts.harness.agents import agent_process
from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import free_port, wait_until
from tests.support.ray_setup import ray_setup
from wire.agents import AgentExchange

#: `broken` cannot start, because it has no weights.
MODELS: dict[str, Any] = {"m": sim(), "broken": {"path": "/does/not/exist"}}


class LauncherSetup(Protocol):
    """What a launcher needs around it. It outlives the launcher, as workers outlive a controller."""

    #: Prefix of its workers' names, and the machine's part of its device names.
    prefix: str
    machine: str
    #: Whether the launcher can start standby workers.
    has_standby: bool

    @property
    def launcher(self) -> Launcher:
        """The launcher of the present controller."""

    def poll(self) -> PollResult:
        """Poll the launcher, as the control loop does."""

    def restart(self) -> None:
        """Replace the launcher, as the next controller does."""


class LocalSetup:
    """The launcher of the controller's own machine."""

    prefix = ""
    machine = ""
    has_standby = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        #: All of them: in this process, the former ones are still the parents of their workers.
        self._launchers: list[LocalLauncher] = []
        self.restart()

    def restart(self) -> None:
        launcher = LocalLauncher(self._settings)
        launcher.prepare()
        self._launchers.append(launcher)
        self.launcher: Launcher = launcher

    def collect(self) -> None:
        """Collect the exits of all workers, which have ended."""
        for launcher in self._launchers:
            launcher.poll()

    def poll(self) -> PollResult:
        return self.launcher.poll()


@contextlib.contextmanager
def local_setup(folder: Path) -> Iterator[LauncherSetup]:
    setup = LocalSetup(settings_in(folder))
    yield setup
    setup.collect()


class AgentSetup:
    """A balancer and the agent of a machine, as processes with data directories of their own."""

    prefix = "box:"
    machine = "box"
    has_standby = True

    def __init__(self, server: Server, settings: Settings) -> None:
        self._settings = settings
        self._client = BalancerHttpClient(server.base_url, internal_token(server.data_dir))
        self._epochs = itertools.count(int(time.time()))
        self.restart()

    def restart(self) -> None:
        launcher = AgentLauncher("box", epoch=next(self._epochs), lost_after_s=10.0, clock=time.monotonic)
        launcher.update_settings(
            model_settings(self._settings), {model: generation(self._settings, model) for model in MODELS}
        )
        self._agent = launcher
        self.launcher: Launcher = launcher

    def is_connected(self) -> bool:
        self.poll()
        return self._agent.machine() is not None

    def poll(self) -> PollResult:
        orders = self._agent.orders()
        exchange = AgentExchange({} if orders is None else {"box": orders})
        states = asyncio.run(self._client.call(AGENTS, exchange))
        if states is not None:
            self._agent.update(states.machines.get("box"), states.uptime_s)
        return self._agent.poll()


@contextlib.contextmanager
def agent_setup(folder: Path) -> Iterator[LauncherSetup]:
    address = f"tcp://127.0.0.1:{free_port()}"
    life = {"heartbeat_s": 0.2, "lost_after_s": 10.0, "listen": address}
    with running(folder / "head", MODELS, 0, life=life) as server:
        settings = load(server.config, {"data_dir": str(server.data_dir)})
        with agent_process(folder / "box", "box", server.data_dir, address) as machine:
            setup = AgentSetup(server, settings)

            def is_connected() -> bool:
                assert machine.process.poll() is None, machine.log()
                return setup.is_connected()

            wait_until(is_connected, "the agent")
            yield setup


#: Every launcher under the contract, by name.
SETUPS: dict[str, Callable[[Path], contextlib.AbstractContextManager[LauncherSetup]]] = {
    "local": local_setup,
    "agent": agent_setup,
    "ray": ray_setup,
}


class WorkerRecord:
    """The launcher's workers, and every exit that it has reported."""

    def __init__(self, setup: LauncherSetup) -> None:
        self.setup = setup
        self.exits: list[Exit] = []

    @property
    def launcher(self) -> Launcher:
        return self.setup.launcher

    def name(self, worker: str) -> str:
        return f"{self.setup.prefix}{worker}"

    def device(self, local: str) -> str:
        return f"{self.setup.machine}/{local}" if self.setup.machine else local

    def poll(self) -> dict[str, WorkerProcess]:
        """Return the workers by name."""
        children, exits = self.setup.poll()
        self.exits += exits
        return {child.id: child for child in children}

    def until(self, condition: Callable[[dict[str, WorkerProcess]], bool], what: str) -> dict[str, WorkerProcess]:
        """Poll until the condition holds of the workers, and return them."""
        found: dict[str, WorkerProcess] = {}

        def holds() -> bool:
            nonlocal found
            found = self.poll()
            return condition(found)

        wait_until(holds, what)
        return found

    def exit_of(self, worker: str) -> Exit:
        """Wait for the worker's exit, and return it. Raises `AssertionError` if it is reported more than once."""
        self.until(lambda _: any(ended.process.id == worker for ended in self.exits), f"the exit of {worker}")
        for _ in range(3):
            self.poll()
        [found] = [ended for ended in self.exits if ended.process.id == worker]
        return found

    def end_all(self) -> None:
        for worker in self.poll():
            self.launcher.kill(worker)
        self.until(lambda workers: not workers, "the end of every worker")


def settings_in(folder: Path, **sections: Any) -> Settings:
    """Return settings with the data directory in this folder."""
    tree = {"data_dir": str(folder / "data"), "models": MODELS, **sections}
    file = folder / "muster.yaml"
    file.write_text(dump_yaml(msgspec.to_builtins(tree)))
    return load(file)
