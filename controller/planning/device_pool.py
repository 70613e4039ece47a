"""The memory of a machine's devices, and the measured memory of workers. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from configs.devices import kind_of, machine_of
from controller.planning.device_health import DeviceHealth
from controller.planning.machines import Machine
from controller.types import Device, Replica, Stage
from host.types import Exit, GpuSensors, MemoryReading

#: GPU memory of a process besides its tensors: CUDA context, kernels, libraries. The worker's report excludes it.
CONTEXT_BYTES = 600 << 20


class DevicePool:
    """The devices of all machines. Devices that are not listed are healthy, and their memory is not counted."""

    def __init__(
        self,
        devices: Iterable[Device] = (),
        *,
        margin: float = 0.1,
        share: bool = False,
        measured: Mapping[str, int] | None = None,
        occupied: Collection[str] = (),
    ) -> None:
        """`measured` is the peak memory of workers in bytes, by `ModelState.weights`.

        `margin` is a safety factor on it: 0.1 adds 10 %. `occupied` lists the devices of adopted workers.
        """
        #: The devices of the controller's machine, and all devices.
        self._own = {device.name: device for device in devices}
        self._devices = dict(self._own)
        self._margin = margin
        self.share = share
        self.measured = dict(measured or {})
        self._health = DeviceHealth()
        #: By device: memory of other processes, and the driver's fault.
        self._others: dict[str, int] = {}
        self._faults: dict[str, str] = {}
        #: What the driver last reported of each device.
        self.sensors: dict[str, GpuSensors] = {}
        #: Memory of each process, by machine and pid.
        self._by_pid: dict[str, Mapping[int, int]] = {}
        #: The devices in use.
        self.occupied = occupied
        #: Machines that are not used, with the reason.
        self._machine_faults: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return f"DevicePool({len(self._devices)} devices, {self._health})"

    @property
    def largest(self) -> Device | None:
        """Return the largest device memory; None where memory is not counted."""
        counted = [device for device in self._devices.values() if device.memory is not None]
        return max(counted, key=lambda device: device.memory or 0, default=None)

    def update(self, readings: Sequence[MemoryReading], occupied: Collection[str]) -> None:
        """Record the driver's readings. `occupied` lists the devices with workers at the time of the reading.

        Memory of other programs is measured only on a device without workers, because not every driver reports the
        memory of each process.
        """
        by_pid: dict[str, dict[int, int]] = {machine_of(reading.device): {} for reading in readings}
        self._by_pid |= by_pid
        for reading in readings:
            if reading.device in self._devices:
                self._faults[reading.device] = reading.fault
                self.sensors[reading.device] = reading.sensors
                by_pid[machine_of(reading.device)] |= reading.processes
                if not reading.fault and reading.device not in {*occupied, *self.occupied}:
                    self._others[reading.device] = reading.used_bytes

    def set_machines(self, machines: Sequence[Machine], faults: Mapping[str, str]) -> None:
        """Add the devices of other machines, with their readings. `faults` has machines that are not used."""
        self._machine_faults = faults
        if not machines and len(self._devices) == len(self._own):
            return
        self._devices = self._own | {device.name: device for machine in machines for device in machine.devices}
        for known in (self._others, self._faults, self.sensors):
            for name in [name for name in known if name not in self._devices]:
                del known[name]
        self._by_pid = {name: pids for name, pids in self._by_pid.items() if name in {"", *(m.name for m in machines)}}
        for machine in machines:
            if machine.readings and not machine.silent:
                self.update(machine.readings, self.occupied)

    def observe(self, workers: Sequence[tuple[str, Replica]], now: float) -> None:
        """Record where the workers are, and begin or end quarantines. `workers` are all, with their weights.

        The maximum memory of ready workers is kept for their weights.
        """
        self.occupied = {replica.process.device for _, replica in workers}
        if self._health.failures:
            self._health.update([replica for _, replica in workers], now)
        for weights, replica in workers:
            device = self._devices.get(replica.process.device)
            if replica.stage is Stage.READY and device is not None and device.memory is not None:
                context = CONTEXT_BYTES if kind_of(device.name) == "cuda" else 0
                reported = replica.memory_bytes + context if replica.memory_bytes else 0
                held = max(reported, self._by_pid.get(machine_of(device.name), {}).get(replica.process.pid, 0))
                if held > self.measured.get(weights, 0):
                    self.measured[weights] = held

    def need(self, weights: str, declared: int | None) -> int | None:
        """Return the bytes of a device that one worker needs; None: a whole device, while unknown."""
        if declared is not None or weights not in self.measured:
            return declared
        measured, largest = self.measured[weights], self.largest
        need = round(measured * (1 + self._margin))
        if largest is None or largest.memory is None:
            return need
        # A worker that has run on the largest device fits there without the margin.
        return min(need, largest.memory) if measured <= largest.memory else None

    def on_crash(self, ended: Exit) -> None:
        self._health.record(ended.process.device, ended.process.model, ended.at)

    def devices(self, now: float) -> dict[str, Device]:
        """Return the devices as they are now."""
        quarantined = self._health.quarantined(now) if self._health.failures else {}
        found = {}
        for name in {**self._devices, **quarantined}:
            device = self._devices.get(name, Device(name))
            memory = None if device.memory is None else max(device.memory - self._others.get(name, 0), 0)
            found[name] = replace(device, memory=memory, fault=self._fault(device, quarantined.get(name, "")))
        return found

    def _fault(self, device: Device, quarantine: str) -> str:
        """Return why no worker starts there: the fault of its machine, of the driver, or of its workers."""
        machine = self._machine_faults.get(machine_of(device.name)) if self._machine_faults else None
        return machine or self._faults.get(device.name) or device.fault or quarantine
