"""A server on a Ray cluster of fake nodes: what ends is replaced, nothing is lost, and no process is left behind.

MUSTER_TEST_RAY_PYTHON=ENV/bin/python pytest tests/integration/test_ray_cluster.py
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from configs.cli import EXIT_USAGE
from configs.paths import curve_dir
from controller.cli import commands
from scripts.harness.balancer import sim
from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S, is_alive, wait_until
from tests.support.ray_cluster import RayCluster, ray_cluster, ray_python
from tests.support.ray_setup import ray_section

MODEL = sim(scaling={"min_workers": 2, "max_workers": 4})


class RayServer:
    """A controller with its cluster, and the processes that its workers had."""

    def __init__(self, folder: Path, cluster: RayCluster) -> None:
        self.cluster = cluster
        config = ray_section(cluster, ray_python())
        config["ray"]["data_dir"] = str(folder / "node")
        config["workers"] |= {"heartbeat_s": 0.2, "lost_after_s": 5}
        self.instance = Instance(folder / "head", config | {"models": {"m": MODEL}})
        self.pids: set[int] = set()

    def workers(self) -> dict[str, int]:
        """Return the process ids of the ready workers."""
        found = {worker.worker: worker.pid for worker in self.instance.workers()}
        self.pids |= set(found.values())
        return found

    def until(self, count: int, without: str = "") -> dict[str, int]:
        """Wait for this number of workers, without the one that has ended."""
        found: dict[str, int] = {}

        def is_reached() -> bool:
            found.clear()
            found.update(self.workers())
            return len(found) == count and without not in found

        self.instance.until(is_reached, f"{count} workers")
        return found

    def scale(self, count: int) -> None:
        words = ["m", str(count), "--data-dir", str(self.instance.folder)]
        self.instance.until(lambda: commands.scale(words) == 0, "a controller that takes the command")

    def keys(self) -> set[str]:
        tree = msgspec.yaml.decode((curve_dir(self.instance.folder) / "workers.yaml").read_bytes())
        return set(tree["workers"])

    def assert_only(self, workers: dict[str, int]) -> None:
        """Check that these have the only processes and keys."""
        gone = self.pids - set(workers.values())
        wait_until(lambda: not any(map(is_alive, gone)), "the end of former workers")
        wait_until(lambda: self.keys() == set(workers), "the revocation of their keys")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(ray_python()) as made:
        before = dict(os.environ)
        os.environ.update(made.environment)
        try:
            yield made
        finally:
            os.environ.clear()
            os.environ.update(before)


@pytest.fixture(scope="module")
def server(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    made = RayServer(tmp_path_factory.mktemp("ray"), cluster)
    try:
        yield made
    finally:
        made.workers()
        made.instance.end()
        made.assert_only({})
        assert not made.cluster.actors()


@contextmanager
def requests(server: RayServer) -> Iterator[Counter[int]]:
    """Send requests without a pause, and count their statuses."""
    over, statuses = threading.Event(), Counter[int]()

    def send() -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not over.is_set():
                statuses[client.post(f"{server.instance.url}/predict", json={"prompt": "a seven"}).status_code] += 1

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_killed_worker_is_replaced(server: RayServer) -> None:
    before = server.until(2)
    with requests(server) as statuses:
        name, pid = next(iter(before.items()))
        psutil.Process(pid).kill()
        server.assert_only(server.until(2, without=name))
    assert set(statuses) == {200}
    server.instance.until_logged(f"worker {name} on")


def test_worker_ends_with_its_killed_actor(server: RayServer) -> None:
    before = server.until(2)
    with requests(server) as statuses:
        [actor, *_] = server.cluster.actors()
        actor.kill()
        wait_until(lambda: any(not is_alive(pid) for pid in before.values()), "the end of its worker")
        [name] = [name for name, pid in before.items() if not is_alive(pid)]
        server.assert_only(server.until(2, without=name))
    assert set(statuses) == {200}


def test_next_controller_adopts_the_workers(server: RayServer) -> None:
    before = server.until(2)
    with requests(server) as statuses:
        server.instance.process.kill()
        server.instance.process.wait()
        server.instance.start()
        server.instance.until_logged("adopting loadbalancer")
        server.scale(3)
        after = server.until(3)
        assert before.items() <= after.items()
        server.scale(2)
        server.assert_only(server.until(2))
    assert set(statuses) == {200}


def test_workers_of_a_dead_node_are_replaced(server: RayServer) -> None:
    server.scale(4)
    before = server.until(4)
    with requests(server) as statuses:
        server.cluster.order("kill 0")
        wait_until(lambda: any(not is_alive(pid) for pid in before.values()), "the end of workers")
        server.cluster.order("add")
        after = server.until(4, without=next(name for name, pid in before.items() if not is_alive(pid)))
        server.assert_only(after)
    assert set(statuses) == {200}


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"address": "127.0.0.1:1"}, "no Ray cluster answers at 127.0.0.1:1"),
        ({"python": sys.executable}, "lacks the package ray"),
        ({}, "demands a token"),
    ],
)
def test_unusable_cluster_is_a_sentence(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], reason: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    config = ray_section(cluster, ray_python())
    config["ray"] |= changes
    assert reason in refused(tmp_path, config | {"models": {"m": MODEL}})


def test_cluster_that_anyone_could_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ray_cluster(ray_python(), nodes=0, token=False) as made:
        for name, text in made.environment.items():
            monkeypatch.setenv(name, text)
        for mode in ("disabled", "token"):  # what this server has says nothing about the cluster
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
            config = ray_section(made, ray_python())
            text = refused(tmp_path / mode, config | {"models": {"m": MODEL}})
            assert "no token authentication" in text


def refused(folder: Path, config: dict[str, object]) -> str:
    """Start a controller that refuses to serve. Return what it says."""
    instance = Instance(folder, config)
    try:
        assert instance.process.wait(PATIENCE_S) == EXIT_USAGE
        return instance.output()
    finally:
        instance.end()
