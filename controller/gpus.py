"""What this machine has. The only asker of NVML."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

log = logging.getLogger("controller")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the driver numbers it."""

    index: int
    name: str
    #: None where it has none of its own.
    total_bytes: int | None

    def __str__(self) -> str:
        memory = "" if self.total_bytes is None else f", {self.total_bytes / 2**30:.0f} GiB"
        return f"{self.name} (cuda:{self.index}{memory})"


def list_gpus() -> list[Gpu]:
    """The GPUs that we may use; none where there is no driver. `CUDA_VISIBLE_DEVICES` of our own start is respected."""
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return []
    except pynvml.NVMLError as error:
        log.warning("the NVIDIA driver is there but does not answer (%s): no GPU is used", error)
        return []
    try:
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
            except pynvml.NVMLError as error:
                log.warning("GPU %d does not answer (%s) and is not used", index, error)
                continue
            if visible(index, uuid, os.environ.get("CUDA_VISIBLE_DEVICES")):
                gpus.append(Gpu(index, name, _memory(handle)))
        return gpus
    finally:
        pynvml.nvmlShutdown()


def _memory(handle: Any) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:
        return None


def visible(index: int, uuid: str, allowed: str | None) -> bool:
    """Whether `CUDA_VISIBLE_DEVICES` (None: not set) names the GPU by its number or the beginning of its UUID."""
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
