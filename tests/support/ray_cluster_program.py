"""A Ray cluster of fake nodes in this machine; runs in the environment of Ray, and ends with standard input.

The arguments are the numbers of nodes, and of GPUs on each. Prints `{"address": ..., "raylets": [...]}` after the start
and after each line of input: `add` adds a node, `kill N` kills the raylet of the node with this number.
"""

from __future__ import annotations

import json
import os
import sys

from ray.cluster_utils import Cluster

#: The least that Ray accepts; nothing is stored in it.
_OBJECT_STORE = 80_000_000


def main(count: int, gpus: int) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, **_node()})
    nodes, raylets = [], []

    def add() -> None:
        nodes.append(cluster.add_node(num_cpus=2, num_gpus=gpus, wait=False, **_node()))
        raylets.append(nodes[-1].all_processes["raylet"][0].process.pid)

    def report() -> None:
        print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)

    for _ in range(count):
        add()
    cluster.wait_for_nodes()
    report()
    for line in sys.stdin:
        verb, *words = line.split()
        if verb == "add":
            add()
            cluster.wait_for_nodes()
        else:
            nodes[int(words[0])].kill_raylet(check_alive=False)
        report()
    cluster.shutdown()
    os._exit(0)


def _node() -> dict[str, object]:
    return {"object_store_memory": _OBJECT_STORE, "include_dashboard": False}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
