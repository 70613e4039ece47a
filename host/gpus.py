"""GPU discovery and memory readings: the only module that uses NVML, imported where GPUs may be used."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

from host.types import GpuSensors, MemoryReading
from host.visible_devices import VARIABLE, GpuId, visible_gpus

log = logging.getLogger("controller")

#: XIDs of device faults, not of program faults: memory errors, the bus, NVLink, the GPU's own processor.
_BAD_XIDS = frozenset({48, 62, 64, 74, 79, 92, 95, 119, 120, 136, 140, 143})


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU. `index` is the driver's number."""

    index: int
    name: str
    #: None if the GPU has no memory of its own.
    total_bytes: int | None

    def __str__(self) -> str:
        memory = "" if self.total_bytes is None else f", {self.total_bytes / 2**30:.0f} GiB"
        return f"{self.name} ({self.device}{memory})"

    @property
    def device(self) -> str:
        """The device name that workers receive."""
        return f"cuda:{self.index}"


def list_gpus() -> list[Gpu]:
    """Return the GPUs that `CUDA_VISIBLE_DEVICES` allows; none without a driver.

    Raises `SetupError` if the variable names a GPU that cannot be used.
    """
    present = _present_gpus()
    visible = visible_gpus([GpuId(gpu.index, uuid) for gpu, uuid in present], os.environ.get(VARIABLE))
    return [gpu for gpu, _ in present if gpu.index in visible]


def _present_gpus() -> list[tuple[Gpu, str]]:
    """Return all GPUs that answer, with their UUIDs."""
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return []
    except pynvml.NVMLError as error:
        log.warning("the NVIDIA driver is installed but does not answer (%s): no GPU is used", error)
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
            gpus.append((Gpu(index, name, _memory(handle)), uuid))
        return gpus
    finally:
        pynvml.nvmlShutdown()


def uuid_of(number: int) -> str:
    """Return the driver's UUID of a GPU; empty without an NVIDIA driver that knows it."""
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(number)))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return ""


def _memory(handle: Any) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:
        return None


class GpuMonitor:
    """Reads memory use and faults of the GPUs.

    A call may block while a GPU hangs: make it in a thread, one at a time.
    """

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._gpus = {gpu.index: gpu for gpu in gpus}
        self._events: Any = None
        #: Faults by GPU that remain until the controller restarts.
        self._permanent_faults: dict[int, str] = {}

    def open(self) -> None:
        """Register for error events. A driver without them reports a fault only by the state it leaves."""
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self._events = pynvml.nvmlEventSetCreate()
            for index in self._gpus:
                with contextlib.suppress(pynvml.NVMLError):
                    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                    pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._events)

    def close(self) -> None:
        with contextlib.suppress(pynvml.NVMLError):
            if self._events is not None:
                pynvml.nvmlEventSetFree(self._events)
            pynvml.nvmlShutdown()

    def read(self) -> list[MemoryReading]:
        """Return the state of every GPU. A GPU that the driver has lost is reported as faulty."""
        self._read_error_events()
        return [self._read(gpu) for gpu in self._gpus.values()]

    def _read(self, gpu: Gpu) -> MemoryReading:
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(gpu.index)
            used = 0 if gpu.total_bytes is None else int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        except pynvml.NVMLError as error:
            return MemoryReading(gpu.device, gpu.total_bytes, fault=f"the driver reports: {error}")
        fault = self._permanent_faults.get(gpu.index) or _pending_recovery(handle)
        return MemoryReading(gpu.device, gpu.total_bytes, used, _processes(handle), fault, _sensors(handle))

    def _read_error_events(self) -> None:
        with contextlib.suppress(pynvml.NVMLError):  # times out after the last event
            while self._events is not None:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                index, xid = int(pynvml.nvmlDeviceGetIndex(event.device)), int(event.eventData)
                if index in self._gpus and xid in _BAD_XIDS:
                    self._permanent_faults[index] = f"the driver reported XID {xid}"


def _processes(handle: Any) -> dict[int, int]:
    """Return the bytes that each process holds; empty if the driver does not report them."""
    with contextlib.suppress(pynvml.NVMLError):
        return {
            int(process.pid): int(process.usedGpuMemory)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            if process.usedGpuMemory
        }
    return {}


def _sensors(handle: Any) -> GpuSensors:
    """Return what the GPU measures; virtual and some small GPUs lack a part of it."""
    temperature = _measured(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU), 1.0)
    power = _measured(lambda: pynvml.nvmlDeviceGetPowerUsage(handle), 1000.0)
    utilisation = _measured(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu, 100.0)
    return GpuSensors(temperature, power, utilisation)


def _measured(read: Callable[[], int], units: float) -> float | None:
    with contextlib.suppress(pynvml.NVMLError):
        return int(read()) / units
    return None


def _pending_recovery(handle: Any) -> str:
    """Return the recovery action that the driver requests; empty if none, or if it cannot report one."""
    with contextlib.suppress(pynvml.NVMLError):
        [answer] = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
        if answer.nvmlReturn == pynvml.NVML_SUCCESS and answer.value.uiVal in _RECOVERY_ACTIONS:
            return f"the driver requests {_RECOVERY_ACTIONS[answer.value.uiVal]}"
    with contextlib.suppress(pynvml.NVMLError):
        *_, failed = pynvml.nvmlDeviceGetRemappedRows(handle)
        if failed:
            return "the driver could not replace broken memory"
    return ""


#: By NVML's number. Left out: draining of peer-to-peer traffic, as a worker uses one GPU.
_RECOVERY_ACTIONS = {1: "a reset of the GPU", 2: "a restart of the machine", 4: "a reset of the GPU once it is idle"}
