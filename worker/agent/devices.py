"""What this machine offers: its GPUs, or its CPU cores if it has none, and simulated GPUs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from configs.settings import Settings
from host.resources import cpu_cores
from host.types import MemoryReading
from wire.agents import DeviceInfo, DriverReading

log = logging.getLogger(__name__)

_READ_EVERY_S = 5.0


class MachineDevices:
    """The devices, and the driver's readings of the GPUs, from a thread that may hang with a GPU."""

    def __init__(self, settings: Settings) -> None:
        """Raises `SetupError` if `CUDA_VISIBLE_DEVICES` names a GPU that cannot be used."""
        self._settings = settings
        self.readings: Sequence[DriverReading] = ()
        self.devices = self._list()

    def _list(self) -> list[DeviceInfo]:
        devices = self._settings.devices
        found = []
        if devices.use != "cpu":
            from host.gpus import list_gpus

            gpus = list_gpus()
            found = [DeviceInfo(gpu.device, gpu.name, gpu.total_bytes) for gpu in gpus]
            if gpus:
                threading.Thread(target=self._read, args=(gpus,), name="gpu-readings", daemon=True).start()
        if not found and devices.use != "cuda":
            slots = cpu_cores() if devices.cpu_slots == "auto" else devices.cpu_slots
            found = [DeviceInfo(f"cpu:{number}") for number in range(slots)]
        sizes = [group.memory for group in devices.simulated for _ in range(group.count)]
        return found + [DeviceInfo(f"sim:{number}", "simulated", int(size)) for number, size in enumerate(sizes)]

    def _read(self, gpus: Sequence[object]) -> None:
        from host.gpus import Gpu, GpuMonitor

        monitor = GpuMonitor([gpu for gpu in gpus if isinstance(gpu, Gpu)])
        monitor.open()
        pause = threading.Event()
        while True:
            self.readings = [_reading(each) for each in monitor.read()]
            pause.wait(_READ_EVERY_S)


def _reading(each: MemoryReading) -> DriverReading:
    processes, fault = dict(each.processes), each.fault[:1000]
    return DriverReading(each.device, each.total_bytes, each.used_bytes, processes, fault, *each.sensors)
