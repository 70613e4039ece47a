"""A Ray cluster on this machine, in the environment that MUSTER_TEST_RAY_PYTHON names."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

PROGRAM = Path(__file__).with_name("ray_cluster_program.py")
VARIABLE = "MUSTER_TEST_RAY_PYTHON"
#: Taken out of the environment: the programs refuse variables that are no settings.
_PYTHON = os.environ.pop(VARIABLE, None)


def ray_python() -> str:
    """Return the interpreter that has Ray; skip the test without one."""
    if not _PYTHON:
        pytest.skip(f"{VARIABLE} names no interpreter with Ray (docs/ray.md)")
    return _PYTHON


class RayCluster(NamedTuple):
    """A cluster of a head without GPUs and of fake nodes with GPUs."""

    process: subprocess.Popen[str]
    address: str
    #: Process ids by number of the node.
    raylets: list[int]
    #: Variables for programs that may use the cluster.
    environment: dict[str, str]

    def order(self, line: str) -> None:
        """Add a node (`add`), or kill one (`kill 0`), and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        self.raylets[:] = _report(self.process)["raylets"]

    def actors(self) -> list[psutil.Process]:
        """Return the processes of actors that run a worker."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ray::WorkerActor" in " ".join(process.cmdline()):
                    found.append(process)
        return found


@contextlib.contextmanager
def ray_cluster(python: str, nodes: int = 2, gpus: int = 2, *, token: bool = True) -> Iterator[RayCluster]:
    """Run a cluster with token authentication; nothing of it is left behind."""
    own = {"RAY_AUTH_MODE": "token" if token else "disabled", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    folder = tempfile.mkdtemp(prefix="ray-")  # of a short path: there are sockets in it
    own |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}
    process = subprocess.Popen(
        [python, str(PROGRAM), str(nodes), str(gpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | own,
        start_new_session=True,
    )
    descendants: set[psutil.Process] = set()
    try:
        found = _report(process)
        cluster = RayCluster(process, found["address"], found["raylets"], own)
        yield cluster
        descendants = set(psutil.Process(process.pid).children(recursive=True))
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)
    finally:
        with contextlib.suppress(psutil.Error):
            descendants |= set(psutil.Process(process.pid).children(recursive=True))
        for each in descendants:
            with contextlib.suppress(psutil.Error):
                each.kill()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        shutil.rmtree(folder, ignore_errors=True)


def _report(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise AssertionError("the cluster has not started")
