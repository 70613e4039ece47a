"""What this machine has. The only asker of NVML."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import pynvml


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the driver numbers it."""

    index: int
    name: str
    total_bytes: int


def list_gpus() -> list[Gpu]:
    """The GPUs that we may use; none where there is no driver. `CUDA_VISIBLE_DEVICES` of our own start is respected."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
            if _visible(index, uuid):
                gpus.append(Gpu(index, name, int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)))
        return gpus
    finally:
        pynvml.nvmlShutdown()


def _visible(index: int, uuid: str) -> bool:
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return True
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    return str(index) in names or any(uuid.startswith(name) for name in names if not name.isdecimal())


def cpu_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(psutil.Process().cpu_affinity() or [0])
    except (AttributeError, psutil.Error):  # not every system can say
        return psutil.cpu_count() or 1
