"""The nodes of a Ray cluster as machines with devices. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from configs.devices import MAX_MACHINE_NAME, is_machine_name, on_machine
from configs.settings import Settings
from controller.launchers.ray.messages import NodeProbe, RayNode, Resources
from controller.planning.machines import Machine
from controller.types import Device
from wire.messages import PROTOCOL

#: Digits of a node's id that make a name unique.
_ID_DIGITS = 6


class ClusterNodes:
    """Gives each node a name that stays, also when another node of the same host name joins."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """`names` are those of nodes that have workers from an earlier controller, by node id."""
        self._names = dict(names)
        self._nodes: Sequence[RayNode] = ()
        self._probes: Mapping[str, NodeProbe] = {}

    def update(self, nodes: Sequence[RayNode], probes: Mapping[str, NodeProbe]) -> None:
        """Replace the live nodes."""
        self._nodes, self._probes = nodes, probes
        live = {node.id for node in nodes}
        self._names = {node: name for node, name in self._names.items() if node in live}
        hosts = Counter(_host_name(node) for node in nodes)
        for node in nodes:
            if node.id not in self._names:
                name = _host_name(node)
                unique = hosts[name] == 1 and name not in self._names.values()
                self._names[node.id] = name if unique else _with_id(name, node.id)

    def node_of(self, machine: str) -> str | None:
        """Return the id of the live node of this name."""
        return next((node for node, name in self._names.items() if name == machine), None)

    @property
    def are_examined(self) -> bool:
        """Whether there are nodes, and each has said what it is."""
        return bool(self._nodes) and all(node.id in self._probes for node in self._nodes)

    def is_live(self, node: str) -> bool:
        return node in self._names

    def resources(self, machine: str, kind: str) -> Resources:
        """Return what Ray reserves for a worker on a device of this kind. A simulated one counts as a real one."""
        node = next((node for node in self._nodes if self._names[node.id] == machine), None)
        has_gpus = node is not None and node.resources.get("GPU", 0) >= 1
        return {"GPU": 1.0} if kind == "cuda" or (kind == "sim" and has_gpus) else {"CPU": 1.0}

    def bundles(self, settings: Settings, workers: int) -> list[Resources]:
        """Return the resources of so many workers. A cluster without nodes yet has GPUs, unless none are to be used."""
        is_gpu = settings.devices.use != "cpu"
        has_gpus = is_gpu and (not self._nodes or any(node.resources.get("GPU", 0) >= 1 for node in self._nodes))
        return [{"GPU": 1.0} if has_gpus else {"CPU": 1.0} for _ in range(workers)]

    def machines(self, settings: Settings, last_report_at: float, *, silent: bool) -> list[Machine]:
        """Return every node that has devices. Where there are simulated models, each device is a simulated one, too."""
        found = []
        cpu_only = settings.devices.use == "cpu"
        simulated = any(model.engine == "sim" for model in settings.models.values())
        for node in self._nodes:
            name, probe = self._names[node.id], self._probes.get(node.id)
            if count := _device_count(node, cpu_only=cpu_only):
                found.append(
                    Machine(
                        name,
                        _devices(node, name, probe, count, cpu_only=cpu_only, simulated=simulated),
                        frozenset(settings.models),
                        last_report_at,
                        silent=silent,
                        refused_reason=_refused_reason(probe),
                        device_names=_device_names(name, probe),
                    )
                )
        return found


def _host_name(node: RayNode) -> str:
    given = node.name if node.name != node.address else node.host
    name = re.sub(r"[^A-Za-z0-9._-]", "-", given).strip("._-")[:MAX_MACHINE_NAME].rstrip("._-")
    return name if is_machine_name(name) else "node"


def _with_id(name: str, node: str) -> str:
    return f"{name[: MAX_MACHINE_NAME - _ID_DIGITS - 1]}-{node[:_ID_DIGITS]}"


def _device_count(node: RayNode, *, cpu_only: bool) -> int:
    gpus = 0 if cpu_only else int(node.resources.get("GPU", 0))
    return gpus or int(node.resources.get("CPU", 0))


def _devices(
    node: RayNode, machine: str, probe: NodeProbe | None, count: int, *, cpu_only: bool, simulated: bool
) -> list[Device]:
    has_gpus = not cpu_only and node.resources.get("GPU", 0) >= 1
    memory = {number: size for number, _, size in probe.gpus} if probe is not None and has_gpus else {}
    kind = "cuda" if has_gpus else "cpu"
    sizes = {f"{kind}:{number}": memory.get(number) for number in range(count)}
    sizes |= {f"sim:{number}": None for number in range(count if simulated else 0)}
    # Ray reserves whole GPUs, so that another worker would wait in vain.
    return [Device(on_machine(machine, name), size, exclusive=True) for name, size in sizes.items()]


def _refused_reason(probe: NodeProbe | None) -> str:
    if probe is None:
        return "it has not been examined yet"
    if probe.problem or probe.protocol is None:
        return probe.problem or "it does not say which Muster it has"
    if probe.protocol != PROTOCOL:
        return f"its Muster speaks protocol {probe.protocol}, and this one {PROTOCOL}: install the same version there"
    return ""


def _device_names(machine: str, probe: NodeProbe | None) -> dict[str, str]:
    gpus = probe.gpus if probe is not None else ()
    return {on_machine(machine, f"cuda:{number}"): name for number, name, _ in gpus}
