"""The launcher with a program in place of the gateway: what it orders, and what it makes of events."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from configs.load import load
from configs.paths import curve_dir
from controller.launchers.ray.gateway_process import GatewayProcess
from controller.launchers.ray.launcher import RayLauncher
from controller.launchers.ray.messages import (
    ORDERS,
    ClusterJoined,
    Event,
    GatewayFailed,
    KillActor,
    NodeProbe,
    NodesListed,
    Order,
    RayNode,
    RequestCapacity,
    SignalWorker,
    StartOnNode,
    WorkerEnded,
    WorkerStarted,
    to_line,
)
from host.types import Exit
from scripts.harness.processes import wait_until
from wire.messages import PROTOCOL

#: Prints the lines of a file that grows, and appends its input to another one, until a line says `end`.
PROGRAM = """
import os, sys, threading, time
events, orders = sys.argv[1:]
def record():
    with open(orders, "ab", buffering=0) as file:
        for line in sys.stdin.buffer:
            file.write(line)
    os._exit(0)
threading.Thread(target=record, daemon=True).start()
with open(events, "rb") as file:
    while True:
        line = file.readline()
        if line == b"end\\n":
            os.write(2, b"it ends\\n*** StackTrace ***\\n/lib/libc.so.6(+0x1) [0x7f]\\n")
            os._exit(1)
        if line:
            os.write(1, line)
        else:
            time.sleep(0.01)
"""
NODE = "a" * 56


class Cluster:
    """The events of a cluster, and the orders that have arrived there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events, self.orders = folder / "events", folder / "orders"
        self.events.touch()
        self.orders.touch()
        file = folder / "muster.yaml"
        file.write_text(
            yaml.safe_dump({"models": {"m": {"engine": "sim"}}, "workers": {"listen": "tcp://127.0.0.1:9"}})
        )
        self.settings = load(file, {"data_dir": str(folder / "data"), "launcher": "ray"})
        self.exits: list[Exit] = []
        self.next()

    def next(self) -> None:
        """Replace the launcher, as the next controller does, with a cluster that has said nothing yet."""
        self.clear()
        command = [sys.executable, "-c", PROGRAM, str(self.events), str(self.orders)]
        gateway = GatewayProcess(command, {}, self.folder / "gateway.log")
        self.launcher = RayLauncher(self.settings, gateway)

    def clear(self) -> None:
        self.events.write_bytes(b"")
        self.orders.write_bytes(b"")

    def say(self, *events: Event) -> None:
        with self.events.open("ab") as file:
            file.writelines(map(to_line, events))

    def end_gateway(self) -> None:
        with self.events.open("ab") as file:
            file.write(b"end\n")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            self.exits += self.launcher.poll().exits
            return condition()

        wait_until(holds, what)

    def join(self, *workers: str) -> None:
        probe = NodeProbe(PROTOCOL, "3.11.7")
        nodes = [RayNode(NODE, "box", "10.0.0.1", "10.0.0.1", {"GPU": 2.0})]
        self.say(ClusterJoined("2.60.0", "10.0.0.1", workers), NodesListed(nodes, {NODE: probe}))
        self.until(lambda: self.launcher.has_nodes, "the nodes")

    def received(self, kind: type[Order]) -> list[Any]:
        written = self.orders.read_bytes()
        complete = written[: written.rfind(b"\n") + 1].splitlines()
        return [order for line in complete if isinstance(order := ORDERS.decode(line), kind)]

    def until_received(self, kind: type[Order], count: int = 1) -> Any:
        self.until(lambda: len(self.received(kind)) >= count, f"{count} {kind.__name__}")
        return self.received(kind)[-1]

    def exit_of(self, worker: str) -> Exit:
        self.until(lambda: any(ended.process.id == worker for ended in self.exits), "the exit")
        [found] = [ended for ended in self.exits if ended.process.id == worker]
        return found

    def keys(self) -> set[str]:
        tree = msgspec.yaml.decode((curve_dir(self.settings.data_dir) / "workers.yaml").read_bytes())
        return set(tree["workers"])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.launcher.close()


def start(cluster: Cluster, worker: str = "m-1", pid: int = 7) -> StartOnNode:
    cluster.launcher.start(worker, "m", "box/sim:0")
    order = cluster.until_received(StartOnNode)
    cluster.say(WorkerStarted(worker, pid))
    cluster.until(lambda: [child.pid for child in cluster.launcher.poll().children] == [pid], "its process id")
    assert isinstance(order, StartOnNode)
    return order


def test_start_has_a_key_and_no_place_twice(cluster: Cluster) -> None:
    cluster.join()
    order = start(cluster)
    cluster.launcher.start("m-1", "m", "box/sim:0")
    assert (order.node, order.resources) == (NODE, {"GPU": 1.0})
    assert order.command[order.command.index("--join") + 1] == "tcp://127.0.0.1:9"
    assert cluster.keys() == {"m-1"}
    assert "secret" not in repr(order)
    cluster.say(WorkerEnded("m-1", 4, "x\ncannot start: no weights"))
    ended = cluster.exit_of("m-1")
    assert (ended.status, ended.start_failure, ended.process.pid) == (4, "no weights", 7)
    assert cluster.keys() == set()
    assert len(cluster.received(StartOnNode)) == 1


@pytest.mark.parametrize("device", ["box/sim:0", "gone/sim:0"])
def test_start_without_cluster_or_node_fails(cluster: Cluster, device: str) -> None:
    if device != "box/sim:0":
        cluster.join()
    with pytest.raises(OSError, match="the Ray cluster"):
        cluster.launcher.start("m-1", "m", device)
    assert not cluster.launcher.poll().children


def test_killed_actor_counts_as_killed(cluster: Cluster) -> None:
    cluster.join()
    start(cluster)
    cluster.launcher.kill("m-1")
    cluster.until_received(KillActor)
    cluster.say(WorkerEnded("m-1", reason="killed by ray.kill"))
    ended = cluster.exit_of("m-1")
    assert (ended.status, ended.machine_failed) == (-9, False)


def test_lost_node_is_no_crash_of_the_model(cluster: Cluster) -> None:
    cluster.join()
    start(cluster)
    cluster.say(NodesListed([], {}), WorkerEnded("m-1", reason="its actor has died"))
    ended = cluster.exit_of("m-1")
    assert ended.machine_failed
    assert "its actor has died" in ended.tail


def test_orders_are_repeated_after_the_gateway_was_lost(cluster: Cluster) -> None:
    cluster.join()
    start(cluster)
    cluster.launcher.request_workers(3)
    cluster.until_received(RequestCapacity)
    cluster.launcher.drain("m-1")
    cluster.until_received(SignalWorker)
    cluster.end_gateway()
    cluster.until(lambda: not cluster.launcher.is_joined, "its end")
    assert cluster.launcher.failure is not None
    assert "it ends" in cluster.launcher.failure.reason
    with pytest.raises(OSError, match="does not answer"):
        cluster.launcher.start("m-2", "m", "box/sim:0")
    cluster.clear()
    cluster.join("m-1")
    assert cluster.until_received(SignalWorker) == SignalWorker("m-1", signal.SIGTERM)
    assert len(cluster.until_received(RequestCapacity).bundles) == 3
    assert not cluster.exits, "the worker has served all the time"


def test_worker_whose_actor_is_gone_has_ended(cluster: Cluster) -> None:
    cluster.join()
    start(cluster)
    cluster.next()
    assert [child.pid for child in cluster.launcher.poll().children] == [7], "from its record"
    cluster.join()
    assert "was gone" in cluster.exit_of("m-1").tail
    assert cluster.keys() == set()
    assert not cluster.launcher.poll().children


def test_actor_without_a_record_is_killed(cluster: Cluster) -> None:
    cluster.join("unknown")
    assert cluster.until_received(KillActor) == KillActor("unknown")
    assert not cluster.launcher.poll().children


def test_capacity_is_requested_again_when_it_shrinks(cluster: Cluster) -> None:
    cluster.join()
    for number in (2, 2, 1, 0):
        cluster.launcher.request_workers(number)
    cluster.until_received(RequestCapacity, 4)  # the first one with the connection
    assert [len(order.bundles) for order in cluster.received(RequestCapacity)] == [0, 2, 1, 0]


def test_refused_cluster_is_a_failure(cluster: Cluster) -> None:
    cluster.say(GatewayFailed("the cluster has no token authentication", refused=True))
    cluster.until(lambda: cluster.launcher.failure is not None, "the failure")
    assert not cluster.launcher.has_nodes


def test_ray_names_the_gpu(cluster: Cluster) -> None:
    cluster.join()
    cluster.launcher.start("m-1", "m", "box/cuda:0")
    assert "cuda:{gpu}" in cluster.until_received(StartOnNode).command
    cluster.say(WorkerStarted("m-1", 7, ["1"]))
    cluster.until(lambda: [child.device for child in cluster.launcher.poll().children] == ["box/cuda:1"], "its GPU")


def test_silent_cluster_has_silent_nodes(cluster: Cluster) -> None:
    cluster.join()
    reported_at = cluster.launcher.machines(0.0)[0].last_report_at
    assert reported_at is not None
    assert not cluster.launcher.machines(reported_at + 9.0)[0].silent
    assert cluster.launcher.machines(reported_at + 11.0)[0].silent
