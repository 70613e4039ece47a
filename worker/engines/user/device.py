"""The device of a user's engine, without importing torch for engines that do not use it."""

from __future__ import annotations

import sys
from typing import Any

import psutil


def device_name(device: str) -> str:
    """Return the name that `load` gets: `cuda:N` as this process sees it, or `cpu`."""
    return device if device.startswith("cuda") else "cpu"


def memory_bytes(device: str) -> int:
    """Return torch's peak GPU memory, or on a CPU the resident memory of this process.

    0 for an engine that uses the GPU without torch: the controller then asks the driver.
    """
    if not device.startswith("cuda"):
        return int(psutil.Process().memory_info().rss)
    torch = _torch()
    is_used = torch is not None and torch.cuda.is_initialized()
    return int(torch.cuda.max_memory_reserved(device)) if is_used else 0


def synchronize(device: str) -> None:
    """Wait for the GPU if the engine has used torch on it."""
    torch = _torch()
    if device.startswith("cuda") and torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize(device)


def free_cached_memory() -> None:
    """Return memory that torch holds for later to the GPU."""
    torch = _torch()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def limit_cpu_threads(device: str) -> None:
    """One thread per worker on a CPU: with more, workers on shared cores wait for each other at every operator."""
    torch = _torch()
    if torch is not None and not device.startswith("cuda"):
        torch.set_num_threads(1)


def _torch() -> Any:
    return sys.modules.get("torch")
