"""What each node says about itself: Muster's protocol there, and its GPUs. Called by the gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from controller.launchers.ray.messages import NodeProbe

_PROBE_S = 60.0


class NodeProbes:
    """Asks each new node, in a task there."""

    def __init__(self, python: str, environment: Mapping[str, str]) -> None:
        """`python` is the interpreter of workers on the nodes, empty for that of Ray; `environment` is theirs."""
        self._python = python
        self._environment = dict(environment)
        self._pending: dict[Any, str] = {}
        self._found: dict[str, NodeProbe] = {}

    def update(self, nodes: Sequence[str]) -> Mapping[str, NodeProbe]:
        """Ask new nodes, without waiting. Return what is known of these nodes."""
        for node in set(nodes) - self._found.keys() - set(self._pending.values()):
            task = ray.remote(_probe_on_node).options(
                num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            )
            self._pending[task.remote(self._python, self._environment, _PROBE_PROGRAM, _PROBE_S)] = node
        if self._pending:
            for answer in ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)[0]:
                node = self._pending.pop(answer)
                try:
                    self._found[node] = msgspec.convert(ray.get(answer), NodeProbe)
                except (RayError, msgspec.ValidationError) as error:
                    self._found[node] = NodeProbe(problem=f"it cannot be examined: {str(error)[:200]}")
        self._found = {node: probe for node, probe in self._found.items() if node in nodes}
        return self._found


#: Runs on the node, in the environment of workers.
_PROBE_PROGRAM = """
import json, platform, sys
found = {"python": platform.python_version(), "gpus": []}
try:
    from configs.worker_packages import environment_problem, missing_packages
    import worker
    found["problem"] = environment_problem(sys.executable, sys.version_info[:2], missing_packages())
    from wire.messages import PROTOCOL
    found["protocol"] = PROTOCOL
except ImportError as error:
    if not found.get("problem"):
        found["problem"] = f"{sys.executable} has no Muster ({error}): install it there, or set ray.worker_python"
try:
    from host.gpus import list_gpus
    found["gpus"] = [[gpu.index, gpu.name, gpu.total_bytes] for gpu in list_gpus() if gpu.total_bytes]
except Exception:  # without NVML, or without GPUs
    found["gpus"] = []
print(json.dumps(found))
"""


def _probe_on_node(python: str, environment: dict[str, str], program: str, timeout_s: float) -> dict[str, Any]:
    """Return the tree of a `NodeProbe`. Ray sends this function by value."""
    import json
    import os
    import subprocess
    import sys

    hidden = ("RAY_", "CUDA_VISIBLE_DEVICES")  # Ray hides the GPUs from a task that reserves none
    own = {name: text for name, text in os.environ.items() if not name.startswith(hidden)} | environment
    interpreter = python or sys.executable
    try:
        done = subprocess.run(  # noqa: S603 - the operator's interpreter
            [interpreter, "-c", program], env=own, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": f"{interpreter} cannot be run there: {error}"}
    if done.returncode:
        return {"problem": f"{interpreter} fails there: {done.stderr[-300:]}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found
