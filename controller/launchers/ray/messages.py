"""The messages between the controller and the gateway: one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

#: Resources by Ray's names: `GPU`, `CPU`.
Resources = dict[str, float]


class StartOnNode(msgspec.Struct, frozen=True, tag=True):
    """Start a worker in an actor on this node."""

    worker: str
    node: str
    resources: Resources
    #: The command. `{run}` stands for the folder of `files`, `{data}` for the node's data
    #: directory, `{gpu}` for the GPU that Ray has chosen.
    command: Sequence[str]
    environment: Mapping[str, str]
    #: Texts of files that only this worker reads, by name.
    files: Mapping[str, str]
    data_dir: str
    #: The interpreter; empty for that of Ray on the node.
    python: str = ""

    def __repr__(self) -> str:
        return f"<StartOnNode {self.worker}>"  # not the key


class SignalWorker(msgspec.Struct, frozen=True, tag=True):
    """Send a signal to a worker."""

    worker: str
    signum: int


class KillActor(msgspec.Struct, frozen=True, tag=True):
    """Kill a worker's actor, and so the worker."""

    worker: str


class RequestCapacity(msgspec.Struct, frozen=True, tag=True):
    """Ask the cluster's autoscaler for room for all of these at once. It replaces the last request."""

    bundles: Sequence[Resources]


Order = StartOnNode | SignalWorker | KillActor | RequestCapacity


class ClusterJoined(msgspec.Struct, frozen=True, tag=True):
    """The gateway is connected. `workers` are all actors of the namespace."""

    version: str
    #: Address of this machine in the cluster.
    address: str
    workers: Sequence[str]


class RayNode(msgspec.Struct, frozen=True):
    """A live node as Ray lists it."""

    id: str
    host: str
    #: The name that its operator gave it; its address otherwise.
    name: str
    address: str
    resources: Resources


class NodeProbe(msgspec.Struct, frozen=True):
    """What a node says about itself."""

    protocol: int | None = None
    python: str = ""
    #: Product name and bytes of each GPU by its number; empty if the node cannot say.
    gpus: Sequence[tuple[int, str, int]] = ()
    #: Why no worker can run there.
    problem: str = ""


class NodesListed(msgspec.Struct, frozen=True, tag=True):
    """The live nodes; sent every second."""

    nodes: Sequence[RayNode]
    #: By node.
    probes: Mapping[str, NodeProbe]


class WorkerStarted(msgspec.Struct, frozen=True, tag=True):
    """A worker's process runs."""

    worker: str
    pid: int
    #: The GPUs that Ray has given to it, by the driver's numbers.
    gpus: Sequence[str] = ()


class WorkerEnded(msgspec.Struct, frozen=True, tag=True):
    """A worker has ended; its actor is gone or ends."""

    worker: str
    status: int | None = None
    tail: str = ""
    has_served: bool = False
    #: Why its actor ended, if it did not end by itself.
    reason: str = ""
    #: Its node has left the cluster.
    node_lost: bool = False


class GatewayFailed(msgspec.Struct, frozen=True, tag=True):
    """The gateway ends. `refused`: trying again is useless until someone changes something."""

    reason: str
    refused: bool


Event = ClusterJoined | NodesListed | WorkerStarted | WorkerEnded | GatewayFailed

#: Decoders of a line. They raise `msgspec.MsgspecError`.
ORDERS: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
EVENTS: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def to_line(message: Order | Event) -> bytes:
    return msgspec.json.encode(message) + b"\n"
