"""Builds the orders that start workers on nodes."""

from __future__ import annotations

from pathlib import Path

from configs.cli import to_yaml
from configs.devices import kind_of, local_name
from configs.settings import Settings
from controller.launchers.ray.messages import Resources, StartOnNode

_SUPERVISOR = Path(__file__).with_name("process_supervisor.py")
#: Hosts of `workers.listen` that stand for every address of this machine.
_ANY_HOST = ("0.0.0.0", "[::]", "*")  # noqa: S104 - compared, not bound


def start_order(
    settings: Settings, worker: str, model: str, device: str, *, node: str, resources: Resources, key: str, address: str
) -> StartOnNode:
    """Return the order for a worker. `address` is that of this machine in the cluster; `key` a text of a key file."""
    kind = kind_of(device)
    own = settings.ray
    options = {
        "--config": "{run}/config.yaml",
        "--data-dir": "{data}",
        "--id": worker,
        "--model": model,
        # Ray chooses the GPU.
        "--device": "cuda:{gpu}" if kind == "cuda" else local_name(device),
        "--join": join_address(settings, address),
        "--key-file": "{run}/worker.key",
    }
    return StartOnNode(
        worker,
        node,
        resources,
        ["-m", "worker", *(word for pair in options.items() for word in pair)],
        _environment(kind) | own.environment,
        {
            "config.yaml": to_yaml(settings),
            "worker.key": key,
            "process_supervisor.py": _SUPERVISOR.read_text(encoding="utf-8"),
        },
        own.data_dir,
        own.worker_python or "",
    )


def join_address(settings: Settings, address: str) -> str:
    """Return the address by which a node finds the balancer. `address` is that of this machine in the cluster."""
    listen = settings.workers.listen or ""
    host, _, port = listen.removeprefix("tcp://").rpartition(":")
    return f"tcp://{f'[{address}]' if ':' in address else address}:{port}" if host in _ANY_HOST else listen


def _environment(kind: str) -> dict[str, str]:
    """Return the variables of a worker; an empty text removes one, except `CUDA_VISIBLE_DEVICES`."""
    if kind == "cuda":
        # Ray sets the threads to the CPUs that it has reserved, of which there are none.
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_NUM_THREADS": ""}
    return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
