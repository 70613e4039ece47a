"""What this machine has. The only asker of NVML."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from controller.planning.device_pool import Reading

log = logging.getLogger("controller")

#: XIDs that tell of the device rather than of what ran on it: memory errors, the bus, NVLink, the GPU's own processor.
_BAD_XIDS = frozenset({48, 62, 64, 74, 79, 92, 95, 119, 120, 136, 140, 143})


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the driver numbers it."""

    index: int
    name: str
    #: None where it has none of its own.
    total_bytes: int | None

    def __str__(self) -> str:
        memory = "" if self.total_bytes is None else f", {self.total_bytes / 2**30:.0f} GiB"
        return f"{self.name} ({self.device}{memory})"

    @property
    def device(self) -> str:
        """As workers are told."""
        return f"cuda:{self.index}"


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
            if is_visible(index, uuid, os.environ.get("CUDA_VISIBLE_DEVICES")):
                gpus.append(Gpu(index, name, _memory(handle)))
        return gpus
    finally:
        pynvml.nvmlShutdown()


def _memory(handle: Any) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:
        return None


class GpuMonitor:
    """Looks at the GPUs again and again: what is used of them, and what is wrong with them.

    A call may take long where a GPU hangs: make it in a thread, one at a time.
    """

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._gpus = {gpu.index: gpu for gpu in gpus}
        self._events: Any = None
        #: What was told of a GPU once, and stays until we start anew.
        self._lasting: dict[int, str] = {}

    def open(self) -> None:
        """Begin. Where the driver cannot tell of errors as they come, they are only seen by what they leave."""
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self._events = pynvml.nvmlEventSetCreate()
            for index in self._gpus:
                with contextlib.suppress(pynvml.NVMLError):
                    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                    pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._events)

    def close(self) -> None:
        """End."""
        with contextlib.suppress(pynvml.NVMLError):
            if self._events is not None:
                pynvml.nvmlEventSetFree(self._events)
            pynvml.nvmlShutdown()

    def read(self) -> list[Reading]:
        """Every GPU as it is now; those that the driver has lost with that as their fault."""
        self._hear_errors()
        return [self._read(gpu) for gpu in self._gpus.values()]

    def _read(self, gpu: Gpu) -> Reading:
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(gpu.index)
            used = 0 if gpu.total_bytes is None else int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        except pynvml.NVMLError as error:
            return Reading(gpu.device, gpu.total_bytes, fault=f"the driver says: {error}")
        fault = self._lasting.get(gpu.index) or _recovery(handle)
        return Reading(gpu.device, gpu.total_bytes, used, _processes(handle), fault)

    def _hear_errors(self) -> None:
        """Take in the errors that the driver has reported since the last time."""
        with contextlib.suppress(pynvml.NVMLError):  # times out when there is nothing more to tell
            while self._events is not None:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                index, xid = int(pynvml.nvmlDeviceGetIndex(event.device)), int(event.eventData)
                if index in self._gpus and xid in _BAD_XIDS:
                    self._lasting[index] = f"the driver reported XID {xid}"


def _processes(handle: Any) -> dict[int, int]:
    """Bytes that each process holds; nothing where the driver does not say."""
    with contextlib.suppress(pynvml.NVMLError):
        return {
            int(process.pid): int(process.usedGpuMemory)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            if process.usedGpuMemory
        }
    return {}


def _recovery(handle: Any) -> str:
    """What the driver wants done before the GPU is used again; empty where it wants nothing, or cannot say."""
    with contextlib.suppress(pynvml.NVMLError):
        [answer] = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
        if answer.nvmlReturn == pynvml.NVML_SUCCESS and answer.value.uiVal in _RECOVERY:
            return f"the driver asks for {_RECOVERY[answer.value.uiVal]}"
    with contextlib.suppress(pynvml.NVMLError):
        *_, failed = pynvml.nvmlDeviceGetRemappedRows(handle)
        if failed:
            return "the driver could not replace broken memory"
    return ""


#: By NVML's number. What peers need (drain from P2P) does not keep a worker from using the GPU alone.
_RECOVERY = {1: "a reset of the GPU", 2: "a restart of the machine", 4: "a reset of the GPU once it is idle"}


def is_visible(index: int, uuid: str, allowed: str | None) -> bool:
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
