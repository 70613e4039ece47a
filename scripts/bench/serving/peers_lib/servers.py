"""Starts and stops one server with the user model. Every process is ended by its id."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.bench.serving.peers_lib.deployment import Deployment, clean_environment
from scripts.bench.serving.peers_lib.loads import Target
from scripts.bench.serving.peers_lib.running import RunningServer, end, wait_until_ready
from scripts.harness.environments import REQUIREMENTS, environment
from scripts.harness.instance import Instance
from scripts.harness.processes import ROOT, free_port

_APPS = "scripts.bench.serving.peers_lib.apps"
_JSON = {"Content-Type": "application/json"}

YARDSTICK, MUSTER = "bare ASGI", "Muster"


@dataclass(frozen=True)
class Peer:
    """A server that is started by one command."""

    name: str
    #: The environment and its `peers-NAME.txt`; none: this program's own environment.
    environment: str | None
    #: The command after its environment's `bin/`; `{port}` is replaced.
    command: tuple[str, ...]
    path: str
    variables: Mapping[str, str] = field(default_factory=dict)

    def prepare(self, envs: Path) -> Path:
        """Return the folder of its programs. Raises `InstallError`."""
        if self.environment is None:
            return Path(sys.executable).parent
        return environment(self.environment, REQUIREMENTS / f"peers-{self.environment}.txt", envs) / "bin"

    @contextlib.contextmanager
    def serve(self, programs: Path, deployment: Deployment) -> Iterator[RunningServer]:
        """Start it, and stop it at the end. Raises `StartError`."""
        with tempfile.TemporaryDirectory(prefix="peers-") as place:
            folder, port = Path(place), free_port()
            environment = {
                **clean_environment(),
                **{name: value.format(folder=folder) for name, value in self.variables.items()},
                **deployment.environment(folder, port),
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "TMPDIR": str(folder),
            }
            program, *options = (part.format(port=port) for part in self.command)
            log = folder / "log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [str(programs / program), *options],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            server = RunningServer(
                Target(f"http://127.0.0.1:{port}{self.path}", _JSON), folder, deployment, process.pid
            )
            try:
                wait_until_ready(server, lambda: process.poll() is None, lambda: log.read_text(errors="replace"))
                yield server
            finally:
                end(process)


@dataclass(frozen=True)
class Muster:
    """A controller with its balancer and workers."""

    name: str = MUSTER

    def prepare(self, _: Path) -> Path:
        return Path(sys.executable).parent

    @contextlib.contextmanager
    def serve(self, _: Path, deployment: Deployment) -> Iterator[RunningServer]:
        """Start it, and stop it at the end. Raises `StartError`."""
        with tempfile.TemporaryDirectory(prefix="peers-") as place, contextlib.ExitStack() as stack:
            folder = Path(place)
            stack.enter_context(_variables(deployment.environment(folder, 0)))
            instance = Instance(folder / "data", muster_config(deployment), threads=None)
            stack.callback(instance.end)
            accept = "application/octet-stream" if deployment.model == "large" else "application/json"
            target = Target(f"{instance.url}/v1/models/bench:predict", _JSON | {"Accept": accept})
            server = RunningServer(target, folder, deployment, instance.process.pid)
            wait_until_ready(server, lambda: instance.process.poll() is None, instance.output)
            yield server


def muster_config(deployment: Deployment) -> dict[str, Any]:
    """Return a configuration with the user model as an engine, in a fixed number of workers."""
    engine = "BytesEngine" if deployment.model == "large" else "Engine"
    model = {
        "engine": f"{_APPS}.muster_engine:{engine}",
        "max_batch_size": deployment.max_batch_size,
        "batching": {"batch_wait_ms": deployment.batch_wait_ms},
        "scaling": {"min_workers": deployment.workers, "max_workers": deployment.workers},
    }
    return {"models": {"bench": model}, "devices": {"use": "cpu", "cpu_slots": deployment.workers}, "workers": {}}


PEERS: dict[str, Peer | Muster] = {
    "asgi": Peer(YARDSTICK, None, ("python", "-m", f"{_APPS}.asgi_app"), "/predict"),
    "muster": Muster(),
    "mosec": Peer("MOSEC", "mosec", ("python", "-m", f"{_APPS}.mosec_app"), "/inference"),
    "litserve": Peer("LitServe", "litserve", ("python", "-m", f"{_APPS}.litserve_app"), "/predict"),
    "ray": Peer(
        "Ray Serve", "ray", ("python", "-m", f"{_APPS}.ray_app"), "/", variables={"RAY_USAGE_STATS_ENABLED": "0"}
    ),
    "bentoml": Peer(
        "BentoML",
        "bentoml",
        ("bentoml", "serve", f"{_APPS}.bentoml_app:Bench", "--host", "127.0.0.1", "--port", "{port}"),
        "/predict",
        variables={"BENTOML_DO_NOT_TRACK": "1", "BENTOML_HOME": "{folder}/bentoml"},
    ),
}


@contextlib.contextmanager
def _variables(added: Mapping[str, str]) -> Iterator[None]:
    """Add variables to this process's environment, which the controller's children get."""
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
