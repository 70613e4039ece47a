"""The nodes of a Ray cluster as machines: names that stay, devices, refusals, and what workers reserve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.devices import is_machine_name
from configs.load import load
from configs.settings import Settings
from controller.launchers.ray.cluster_nodes import ClusterNodes
from controller.launchers.ray.messages import NodeProbe, RayNode
from wire.messages import PROTOCOL

GOOD = NodeProbe(PROTOCOL, "3.11.7")


def node(number: int, host: str = "box", gpus: float = 0, cpus: float = 0, name: str = "10.0.0.1") -> RayNode:
    return RayNode(f"{number:056x}"[::-1], host, name, "10.0.0.1", {"GPU": gpus, "CPU": cpus})


def settings(folder: Path, **sections: Any) -> Settings:
    file = folder / "muster.yaml"
    file.write_text(yaml.safe_dump({"models": {"m": {"path": "/models/m"}}} | sections))
    return load(file, {"data_dir": str(folder / "data")})


def listed(nodes: Sequence[RayNode], known: Mapping[str, str] | None = None) -> ClusterNodes:
    made = ClusterNodes(known or {})
    made.update(nodes, {each.id: GOOD for each in nodes})
    return made


def names(nodes: ClusterNodes, folder: Path) -> list[str]:
    return [machine.name for machine in nodes.machines(settings(folder), 0.0, silent=False)]


@pytest.mark.parametrize(
    ("node_name", "host", "expected"),
    [
        ("10.0.0.1", "gpu-box", "gpu-box"),
        ("left", "gpu-box", "left"),
        ("10.0.0.1", "gpu_box.lan", "gpu_box.lan"),
        ("10.0.0.1", "Büro 7", "B-ro-7"),
        ("10.0.0.1", "...", "node"),
        ("10.0.0.1", "x" * 80, "x" * 63),
    ],
)
def test_node_has_its_operators_name_or_its_hosts(tmp_path: Path, node_name: str, host: str, expected: str) -> None:
    nodes = [node(1, host, cpus=1, name=node_name)]
    assert names(listed(nodes), tmp_path) == [expected]


def test_equal_hosts_are_told_apart_and_names_stay(tmp_path: Path) -> None:
    first, second = node(1, cpus=1), node(2, cpus=1)
    nodes = listed([first])
    nodes.update([first, second], {first.id: GOOD, second.id: GOOD})
    assert names(nodes, tmp_path) == ["box", f"box-{second.id[:6]}"]
    nodes.update([second], {second.id: GOOD})
    assert names(nodes, tmp_path) == [f"box-{second.id[:6]}"]
    assert nodes.node_of("box") is None
    assert not nodes.is_live(first.id)
    assert names(listed([first, second]), tmp_path) == [f"box-{first.id[:6]}", f"box-{second.id[:6]}"]


def test_node_with_workers_keeps_the_name_of_its_record(tmp_path: Path) -> None:
    first, second = node(1, cpus=1), node(2, cpus=1)
    assert names(listed([first, second], {second.id: "box"}), tmp_path) == [f"box-{first.id[:6]}", "box"]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["a", "b", "ü", ""])), unique_by=lambda pair: pair[0]))
def test_names_are_valid_and_unique(pairs: list[tuple[int, str]]) -> None:
    nodes = [node(number, host, cpus=1) for number, host in pairs]
    made = listed(nodes)
    found = [name for each in nodes for name in made._names.values() if made.node_of(name) == each.id]
    assert len(found) == len(set(found)) == len(nodes)
    assert all(map(is_machine_name, found))


@pytest.mark.parametrize(
    ("gpus", "cpus", "sections", "expected"),
    [
        (2, 8, {}, ["box/cuda:0", "box/cuda:1"]),
        (0, 2, {}, ["box/cpu:0", "box/cpu:1"]),
        (2, 1, {"devices": {"use": "cpu"}}, ["box/cpu:0"]),
        (1, 8, {"models": {"m": {"engine": "sim"}}}, ["box/cuda:0", "box/sim:0"]),
        (0.5, 0, {}, []),
    ],
)
def test_devices_are_what_ray_counts(
    tmp_path: Path, gpus: float, cpus: float, sections: dict[str, Any], expected: list[str]
) -> None:
    machines = listed([node(1, gpus=gpus, cpus=cpus)]).machines(settings(tmp_path, **sections), 0.0, silent=False)
    assert [device.name for machine in machines for device in machine.devices] == expected
    assert all(device.exclusive for machine in machines for device in machine.devices)


def test_gpu_has_the_memory_that_its_node_reports(tmp_path: Path) -> None:
    one = node(1, gpus=2)
    nodes = ClusterNodes({})
    nodes.update([one], {one.id: NodeProbe(PROTOCOL, gpus=[(0, "H100", 80 << 30)])})
    [machine] = nodes.machines(settings(tmp_path), 5.0, silent=True)
    assert [device.memory for device in machine.devices] == [80 << 30, None]
    assert machine.device_names == {"box/cuda:0": "H100"}
    assert (machine.silent, machine.last_report_at) == (True, 5.0)


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (None, "not been examined"),
        (GOOD, ""),
        (NodeProbe(PROTOCOL - 1), f"protocol {PROTOCOL - 1}, and this one {PROTOCOL}"),
        (NodeProbe(problem="python lacks msgspec"), "python lacks msgspec"),
        (NodeProbe(), "does not say"),
    ],
)
def test_node_with_another_version_is_refused(tmp_path: Path, probe: NodeProbe | None, reason: str) -> None:
    one = node(1, cpus=1)
    nodes = ClusterNodes({})
    nodes.update([one], {} if probe is None else {one.id: probe})
    [machine] = nodes.machines(settings(tmp_path), 0.0, silent=False)
    assert reason in machine.refused_reason
    assert bool(machine.refused_reason) == bool(reason)
    assert nodes.are_examined == (probe is not None)


@pytest.mark.parametrize(
    ("kind", "gpus", "expected"),
    [("cuda", 2, {"GPU": 1.0}), ("cpu", 2, {"CPU": 1.0}), ("sim", 2, {"GPU": 1.0}), ("sim", 0, {"CPU": 1.0})],
)
def test_worker_reserves_what_its_device_is(kind: str, gpus: float, expected: dict[str, float]) -> None:
    assert listed([node(1, gpus=gpus, cpus=4)]).resources("box", kind) == expected


@pytest.mark.parametrize(
    ("nodes", "use", "expected"),
    [
        ([], "auto", "GPU"),
        ([node(1, cpus=4)], "auto", "CPU"),
        ([node(1, gpus=1)], "cpu", "CPU"),
        ([node(1, gpus=1)], "auto", "GPU"),
    ],
)
def test_room_is_requested_in_what_the_cluster_has(
    tmp_path: Path, nodes: list[RayNode], use: str, expected: str
) -> None:
    assert listed(nodes).bundles(settings(tmp_path, devices={"use": use}), 2) == [{expected: 1.0}] * 2
