"""Several machines: agents as processes with data directories of their own, under load, killed and cut off."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from configs.paths import log_dir
from controller.launchers.local import BALANCER
from loadbalancer.access import keys_cli
from scripts.harness.agents import AgentMachine, agent_process
from scripts.harness.balancer import sim
from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S, free_port, wait_until
from scripts.harness.tcp_proxy import TcpProxy

LOST_AFTER_S = 3.0
#: Devices of each machine.
EACH = 2


class Load:
    """Clients that send one request after the other. Every request must be answered with an image."""

    def __init__(self, url: str, clients: int) -> None:
        self._url = url
        self._stop = threading.Event()
        self.statuses: Counter[int] = Counter()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not self._stop.is_set():
                body = {"model": "m", "prompt": "a seven", "seed": number, "num_inference_steps": 20}
                self.statuses[client.post(f"{self._url}/v1/images/generations", json=body).status_code] += 1

    def until_answered(self, count: int) -> None:
        """Wait until so many more requests are answered."""
        target = self.statuses.total() + count
        wait_until(lambda: self.statuses.total() >= target, f"{count} answers")


class Cluster:
    """A server whose own machine has no device for the model, and two machines with two devices each.

    The second one is connected through a proxy.
    """

    def __init__(self, folder: Path, workers: int = 2 * EACH, **options: Any) -> None:
        """`options` belong to the section `workers`."""
        self.port = free_port()
        self.model = sim(t0_s=0.02, gpu_memory="20GiB", scaling={"min_workers": workers, "max_workers": workers})
        self.config: dict[str, Any] = {
            "models": {"m": self.model},
            "devices": {"simulated": [{"memory": "1GiB"}]},
            "workers": {
                "heartbeat_s": 0.2,
                "lost_after_s": LOST_AFTER_S,
                "listen": f"tcp://127.0.0.1:{self.port}",
            }
            | options,
        }
        self.head = Instance(folder / "head", self.config)

    def machines(self) -> Counter[str]:
        """Return the number of ready workers by machine."""
        return Counter(worker.worker.partition(":")[0] for worker in self.head.workers())

    def balancer_log(self) -> str:
        return (log_dir(self.head.folder) / "loadbalancer.log").read_text()

    def until(self, machines: dict[str, int]) -> None:
        self.head.until(lambda: self.machines() == machines, f"the workers {machines}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, AgentMachine, AgentMachine, TcpProxy]]:
    folder = tmp_path_factory.mktemp("cluster")
    devices = {"devices": {"use": "cpu", "cpu_slots": 1, "simulated": [{"memory": "24GiB", "count": EACH}]}}
    cluster = Cluster(folder)
    try:
        cluster.head.until(lambda: BALANCER in cluster.head.records(), "the balancer")
        address = f"tcp://127.0.0.1:{cluster.port}"
        with (
            TcpProxy(cluster.port) as proxy,
            agent_process(folder / "near", "near", cluster.head.folder, address, devices) as near,
            agent_process(folder / "far", "far", cluster.head.folder, proxy.address, devices) as far,
        ):
            yield cluster, near, far, proxy
    finally:
        cluster.head.end()


Parts = tuple[Cluster, AgentMachine, AgentMachine, TcpProxy]


def test_machine_that_dies_under_load_loses_nothing(cluster: Parts) -> None:
    parts, near, _, _ = cluster
    parts.until({"near": EACH, "far": EACH})
    assert {worker.device for worker in parts.head.workers()} == {
        f"{machine}/sim:{number}" for machine in ("near", "far") for number in range(EACH)
    }
    with Load(parts.head.url, 8) as load:
        load.until_answered(20)
        near.kill()
        parts.until({"far": EACH})
        load.until_answered(20)
        near.start()
        parts.until({"near": EACH, "far": EACH})
        load.until_answered(20)
    assert set(load.statuses) == {200}


def test_machine_that_was_cut_off_is_taken_over(cluster: Parts) -> None:
    parts, _, far, proxy = cluster
    parts.until({"near": EACH, "far": EACH})
    before = {worker.pid for worker in far.workers()}
    with Load(parts.head.url, 8) as load:
        load.until_answered(20)
        proxy.cut()
        parts.until({"near": EACH})
        parts.head.until_logged("the machine far is not used")
        load.until_answered(20)
        proxy.heal()
        parts.until({"near": EACH, "far": EACH})
        load.until_answered(20)
    assert set(load.statuses) == {200}
    assert {worker.pid for worker in far.workers()} == before
    lines = re.findall(r"^worker (far:\S+) ready on \S+ after (.*) s$", parts.head.output(), re.MULTILINE)
    assert len(lines) > len(set(lines)), "a worker is ready again"
    assert len({worker for worker, _ in lines}) == len(set(lines)), "the cut is no part of its start"


def test_machine_whose_connections_break_stays(cluster: Parts) -> None:
    parts, _, far, proxy = cluster
    parts.until({"near": EACH, "far": EACH})
    before = {worker.pid for worker in far.workers()}
    connected = parts.balancer_log().count("the agent of far has connected")
    with Load(parts.head.url, 8) as load:
        load.until_answered(20)
        proxy.reset()
        wait_until(
            lambda: parts.balancer_log().count("the agent of far has connected") > connected, "the agent's next Hello"
        )
        load.until_answered(20)
    parts.until({"near": EACH, "far": EACH})
    assert set(load.statuses) == {200}
    assert far.process.poll() is None
    assert {worker.pid for worker in far.workers()} == before


def test_agents_and_controller_adopt_what_runs(cluster: Parts) -> None:
    parts, near, far, _ = cluster
    parts.until({"near": EACH, "far": EACH})
    before = {worker.pid for machine in (near, far) for worker in machine.workers()}
    for machine in (near, far):
        machine.kill(workers=False)
    parts.head.process.kill()
    parts.head.process.wait()
    for machine in (near, far):
        machine.start()
    restarted = time.monotonic()
    parts.head.start()

    def is_adopted() -> bool:
        """Whether the new controller lists all workers of both machines."""
        answer = httpx.get(f"{parts.head.url}/internal/controller", headers=parts.head.admin, timeout=PATIENCE_S)
        replicas = answer.json()["replicas"] if answer.is_success else []
        uptime_s = answer.json()["uptime_s"] if answer.is_success else 0.0
        return uptime_s < time.monotonic() - restarted and len(replicas) == 2 * EACH

    parts.head.until(is_adopted, "the workers of both machines")
    parts.until({"near": EACH, "far": EACH})
    assert {worker.pid for machine in (near, far) for worker in machine.workers()} == before

    def ready() -> list[str]:
        """Return the lines about workers that the new controller printed."""
        printed = parts.head.output().rpartition("models: m; logs: ")[2].splitlines()
        return [line for line in printed if line.startswith("worker ")]

    parts.head.until(lambda: len(ready()) >= 2 * EACH, "a line for each worker")
    assert len(set(ready())) == len(ready()) == 2 * EACH, "each once"
    assert not any(" after " in line for line in ready()), "this controller has not started them"


def test_rolling_replacement_across_machines(cluster: Parts) -> None:
    parts = cluster[0]
    parts.until({"near": EACH, "far": EACH})
    before = {worker.worker for worker in parts.head.workers()}
    reload = {"models": ["m"]}
    answer = httpx.post(f"{parts.head.url}/internal/reload", json=reload, headers=parts.head.admin, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text

    def is_replaced() -> bool:
        now = {worker.worker for worker in parts.head.workers()}
        return now.isdisjoint(before) and len(now) == 2 * EACH

    with Load(parts.head.url, 8) as load:
        parts.head.until(is_replaced, "other workers in place of all")
    assert set(load.statuses) == {200}


def test_stopped_agent_drains_and_the_server_notices(cluster: Parts) -> None:
    parts, near, _, _ = cluster
    parts.until({"near": EACH, "far": EACH})
    near.process.terminate()
    assert near.process.wait(PATIENCE_S) == 0
    assert not near.workers()
    parts.until({"far": EACH})
    near.start()
    parts.until({"near": EACH, "far": EACH})


def test_machine_that_was_suspended_keeps_its_workers(tmp_path: Path) -> None:
    """For longer than `workers.orphan_after_s`: it has not listened, so the server may be there."""
    parts = Cluster(tmp_path, workers=EACH, orphan_after_s=8.0)
    try:
        with agent_process(tmp_path / "box", "box", parts.head.folder, f"tcp://127.0.0.1:{parts.port}") as box:
            parts.until({"box": EACH})
            before = {worker.pid for worker in box.workers()}
            stopped = box.pause()
            time.sleep(12.0)
            box.resume(stopped)
            wait_until(lambda: "was suspended" in box.log(), "the agent's line")
            parts.until({"box": EACH})
            assert {worker.pid for worker in box.workers()} == before
            assert "are drained" not in box.log()
    finally:
        parts.head.end()


def test_machine_that_stays_away_over_a_restart_is_listed_until_its_key_is_revoked(tmp_path: Path) -> None:
    parts = Cluster(tmp_path, workers=EACH)

    def listed() -> dict[str, Any]:
        """Return the machines that the controller lists, as soon as it has started."""
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{parts.head.url}/internal/controller", headers=parts.head.admin, timeout=PATIENCE_S)
            return {each["machine"]: each for each in answer.json()["machines"]} if answer.is_success else {}
        return {}

    try:
        with agent_process(tmp_path / "box", "box", parts.head.folder, f"tcp://127.0.0.1:{parts.port}"):
            parts.until({"box": EACH})
        parts.head.end()
        parts.head.start()
        parts.head.until(lambda: "box" in listed(), "the machine that is away")
        box = listed()["box"]
        assert (box["last_report_age_s"], box["silent"]) == (None, False)
        assert box["unused_reason"] == "no agent has connected with its key since the server started"
        metrics = httpx.get(f"{parts.head.url}/metrics", headers=parts.head.admin, timeout=PATIENCE_S).text
        assert 'muster_machine_unused{machine="box"} 1.0' in metrics
        assert keys_cli.main(["--data-dir", str(parts.head.folder), "revoke-worker", "box"]) == 0
        parts.head.until(lambda: "box" not in listed(), "the machine is forgotten")
    finally:
        parts.head.end()


def test_agent_without_a_server_says_where_it_looked(tmp_path: Path) -> None:
    with agent_process(tmp_path / "box", "box", tmp_path / "head", f"tcp://127.0.0.1:{free_port()}") as box:
        wait_until(lambda: f"no answer from {box.address}: does a server" in box.log(), "the warning")
