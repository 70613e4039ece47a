"""Launchers under test, behind one interface: each runs real workers of simulated models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from configs.load import load
from configs.settings import Settings
from configs.yaml_file import dump_yaml
from controller.launchers import Launcher
from controller.launchers.local import LocalLauncher
from host.types import Exit, PollResult, WorkerProcess
from scripts.harness.balancer import sim
from scripts.harness.processes import wait_until

#: `broken` cannot start, because it has no weights.
MODELS: dict[str, Any] = {"m": sim(), "broken": {"path": "/does/not/exist"}}


class LauncherSetup(Protocol):
    """What a launcher needs around it. It outlives the launcher, as workers outlive a controller."""

    #: Prefix of its workers' names, and the machine's part of its device names.
    prefix: str
    machine: str

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


#: Every launcher under the contract, by name.
SETUPS: dict[str, Callable[[Path], contextlib.AbstractContextManager[LauncherSetup]]] = {"local": local_setup}


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
