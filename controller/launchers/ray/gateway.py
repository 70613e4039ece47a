"""`python -m controller.launchers.ray.gateway`: the driver of the Ray cluster, as a process of its own.

Calls into Ray may block for a minute, and Ray ends a process that has lost its cluster. So the controller does not call
Ray: it sends orders to standard input, and reads events from standard output. The gateway ends with its input.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, BinaryIO

import msgspec
import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from controller.launchers.ray import node_probes, worker_actor
from controller.launchers.ray.cluster_access import Refused, Unreachable, connect
from controller.launchers.ray.messages import (
    ORDERS,
    ClusterJoined,
    Event,
    GatewayFailed,
    KillActor,
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
from controller.launchers.ray.node_probes import NodeProbes

_NODES_EVERY_S, _WAIT_S, _ASK_AGAIN_S = 1.0, 0.05, 1.0
#: In Ray's message for an actor whose node is gone.
_NODE_HAS_DIED = "node has died"
_MAX_REASON = 500


class Gateway:
    """Executes orders on the cluster, and reports its nodes and the ends of workers."""

    def __init__(self, output: BinaryIO, probes: NodeProbes) -> None:
        self._output = output
        self._probes = probes
        #: Actors that did not answer, and when they are asked again.
        self._unavailable: dict[str, float] = {}
        self._actors: dict[str, Any] = {}
        #: What pending calls of actors are about.
        self._calls: dict[Any, tuple[str, str]] = {}
        self._listed_at = float("-inf")

    def send(self, event: Event) -> None:
        self._output.write(to_line(event))
        self._output.flush()

    def adopt(self) -> None:
        """Watch the actors that an earlier gateway has left."""
        names = list_named_actors()
        self.send(ClusterJoined(ray.__version__, ray.util.get_node_ip_address(), names))
        for name in names:
            with contextlib.suppress(ValueError):  # it has just ended: its exit is reported from the list of names
                self._actors[name] = ray.get_actor(name)
                self._call(name, "start", self._actors[name].describe.remote())

    def run(self, orders: queue.Queue[Order]) -> None:
        """Serve until the process is ended."""
        while True:
            now = time.monotonic()
            self._ask_again(now)
            if now - self._listed_at >= _NODES_EVERY_S:
                self._list_nodes()
                self._listed_at = now
            with contextlib.suppress(queue.Empty):
                while True:
                    self._execute(orders.get(block=not self._calls, timeout=_WAIT_S))
            if self._calls:
                ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=_WAIT_S)
                for call in ready:
                    self._finish(call)

    def _execute(self, order: Order) -> None:
        match order:
            case StartOnNode():
                self._start(order)
            case SignalWorker(worker, signum):
                if worker in self._actors:
                    self._actors[worker].signal.remote(signum)
            case KillActor(worker):
                self._kill(worker)
            case RequestCapacity(bundles):
                request_resources(bundles=list(bundles))

    def _start(self, order: StartOnNode) -> None:
        if order.worker in self._actors:
            return
        actor = ray.remote(worker_actor.WorkerActor).options(
            name=order.worker,
            lifetime="detached",
            num_cpus=order.resources.get("CPU", 0),
            num_gpus=order.resources.get("GPU", 0),
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(order.node, soft=False),
        )
        self._actors[order.worker] = actor.remote()
        self._call(order.worker, "start", self._actors[order.worker].start.remote(msgspec.to_builtins(order)))

    def _kill(self, worker: str) -> None:
        actor = self._actors.get(worker)
        if actor is not None:
            ray.kill(actor, no_restart=True)

    def _call(self, worker: str, what: str, reference: Any) -> None:
        self._calls[reference] = worker, what

    def _finish(self, call: Any) -> None:
        worker, what = self._calls.pop(call)
        try:
            answer = ray.get(call)
        except ActorUnavailableError:
            # Its node has died, or the network to it is cut: Ray finds out within seconds.
            self._unavailable[worker] = time.monotonic() + _ASK_AGAIN_S
            return
        except (RayActorError, RayTaskError, RayError) as error:
            if worker in self._actors:
                with contextlib.suppress(RayError):
                    self._kill(worker)
                del self._actors[worker]
                lost = _NODE_HAS_DIED in str(error) or isinstance(error, ActorUnschedulableError)
                self.send(WorkerEnded(worker, reason=_reason(error), node_lost=lost))
            return
        if what == "start":
            self.send(WorkerStarted(worker, answer["pid"], answer["gpus"]))
            self._call(worker, "wait", self._actors[worker].wait.remote())
            return
        self._kill(worker)
        del self._actors[worker]
        self.send(WorkerEnded(worker, answer["status"], answer["tail"], answer["has_served"]))

    def _ask_again(self, now: float) -> None:
        """Ask actors that did not answer. What they say follows as if they had just been adopted."""
        for worker in [worker for worker, due in self._unavailable.items() if now >= due]:
            del self._unavailable[worker]
            if worker in self._actors:
                self._call(worker, "start", self._actors[worker].describe.remote())

    def _list_nodes(self) -> None:
        nodes = [
            RayNode(
                node["NodeID"],
                node["NodeManagerHostname"],
                node.get("NodeName") or node["NodeManagerAddress"],
                node["NodeManagerAddress"],
                {name: float(node["Resources"].get(name, 0)) for name in ("GPU", "CPU")},
            )
            for node in ray.nodes()
            if node["Alive"]
        ]
        self.send(NodesListed(nodes, self._probes.update([node.id for node in nodes])))


def _reason(error: Exception) -> str:
    """Return one sentence for a failed call."""
    if isinstance(error, ActorUnschedulableError):
        return "Ray cannot place it: its node has left the cluster"
    if isinstance(error, RayTaskError):
        return f"its actor cannot start it: {error.cause}"[:_MAX_REASON]
    if isinstance(error, ActorDiedError):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[-1].partition(" Some common causes")[0] if lines else "no reason given"
        return f"its actor has died: {text}"[:_MAX_REASON]
    return f"Ray reports: {str(error).splitlines()[0] if str(error) else type(error).__name__}"[:_MAX_REASON]


def _read_orders(orders: queue.Queue[Order]) -> None:
    """Queue the orders. End the process at the end of input: the main thread may wait for Ray."""
    for line in sys.stdin.buffer:
        try:
            orders.put(ORDERS.decode(line))
        except msgspec.MsgspecError as error:
            print(f"an order is not understood: {error}", file=sys.stderr)
    os._exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m controller.launchers.ray.gateway")
    parser.add_argument("--address", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--python", default="", help="interpreter of workers on the nodes; default: that of Ray")
    parser.add_argument("--environment", default="{}", help="variables of workers on the nodes, as a JSON object")
    args = parser.parse_args(argv)
    # Libraries print to standard output.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Ray sends code to its nodes in this form, within a cluster that the token guards. It carries these two modules of
    # ours, because a node need not have Muster; nothing of a client, and no model.
    for module in (worker_actor, node_probes):
        ray.cloudpickle.register_pickle_by_value(module)
    orders: queue.Queue[Order] = queue.Queue()
    threading.Thread(target=_read_orders, args=(orders,), name="orders", daemon=True).start()
    gateway = Gateway(output, NodeProbes(args.python, msgspec.json.decode(args.environment, type=dict[str, str])))
    try:
        connect(args.address, args.namespace)
        gateway.adopt()
        gateway.run(orders)
    except (Refused, Unreachable) as error:
        gateway.send(GatewayFailed(str(error), isinstance(error, Refused)))
    except BrokenPipeError:  # the controller is gone
        pass
    except Exception as error:
        gateway.send(GatewayFailed(f"{type(error).__name__}: {error}"[:_MAX_REASON], refused=False))
        raise
    return 1


if __name__ == "__main__":
    os._exit(main())  # Ray's own end can wait for a cluster that is gone
