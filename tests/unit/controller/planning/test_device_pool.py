"""Device memory, and the measured memory of workers."""

from __future__ import annotations

import pytest

from controller.planning.device_pool import CONTEXT_BYTES, DevicePool
from controller.planning.machines import Machine
from controller.types import Device, Replica, Stage
from host.types import Exit, GpuSensors, MemoryReading, WorkerProcess

GIB = 2**30
GPUS = (Device("cuda:0", 24 * GIB), Device("cuda:1", 80 * GIB))


def replica(held: float, device: str = "cuda:0", stage: Stage = Stage.READY, pid: int = 7) -> Replica:
    return Replica(WorkerProcess("w", "m", device, pid, 0.0, None, 1.0), stage, memory_bytes=int(held * GIB))


def update(pool: DevicePool, replicas: list[Replica], now: float) -> dict[str, Device]:
    pool.observe([("weights", one) for one in replicas], now)
    return pool.devices(now)


@pytest.mark.parametrize(
    ("seen", "declared", "need"),
    [
        ([], None, None),
        ([], 9 * GIB, 9 * GIB),
        ([replica(10)], 9 * GIB, 9 * GIB),
        ([replica(10)], None, round((10 * GIB + CONTEXT_BYTES) * 1.1)),
        # The maximum counts, not the last value.
        ([replica(10), replica(12), replica(3)], None, round((12 * GIB + CONTEXT_BYTES) * 1.1)),
        # A loading worker, or one without a report, gives no measurement.
        ([replica(10, stage=Stage.STARTING)], None, None),
        ([replica(0)], None, None),
        # With the margin it fits on no device, but it has run: it gets the largest device.
        ([replica(75, "cuda:1")], None, 80 * GIB),
        # A measurement on a larger GPU than the present ones is ignored.
        ([replica(90, "cuda:1")], None, None),
        # Without counted memory there is no need.
        ([replica(10, "cpu:0")], None, None),
    ],
)
def test_need_is_declared_measured_or_unknown(seen: list[Replica], declared: int | None, need: int | None) -> None:
    pool = DevicePool(GPUS)
    for one in seen:
        pool.observe([("weights", one)], 0.0)
    assert pool.need("weights", declared) == need


def test_driver_reading_exceeds_reported_memory() -> None:
    pool = DevicePool(GPUS, margin=0.0)
    pool.update([MemoryReading("cuda:0", 24 * GIB, 12 * GIB, {7: 12 * GIB, 8: 30 * GIB})], {"cuda:0"})
    pool.observe([("weights", replica(10, pid=7))], 0.0)
    assert pool.need("weights", None) == 12 * GIB


def test_simulated_device_has_no_cuda_context() -> None:
    pool = DevicePool([Device("sim:0", 24 * GIB)], margin=0.5)
    pool.observe([("weights", replica(10, "sim:0"))], 0.0)
    assert pool.need("weights", None) == 15 * GIB


def test_saved_measurement_is_used_at_start() -> None:
    assert DevicePool(GPUS, measured={"weights": 8 * GIB}, margin=0.25).need("weights", None) == 10 * GIB


def test_foreign_memory_is_measured_on_unoccupied_devices() -> None:
    pool = DevicePool(GPUS)
    readings = [MemoryReading("cuda:0", 24 * GIB, 4 * GIB), MemoryReading("cuda:1", 80 * GIB, 5 * GIB)]
    pool.update(readings, {"cuda:1"})
    found = update(pool, [], 0.0)
    assert (found["cuda:0"].memory, found["cuda:1"].memory) == (20 * GIB, 80 * GIB)
    # Our workers are on the first device, so its reading is not foreign memory. The second is free.
    update(pool, [replica(10)], 1.0)
    pool.update([MemoryReading("cuda:0", 24 * GIB, 16 * GIB), MemoryReading("cuda:1", 80 * GIB, 1 * GIB)], {"cuda:0"})
    found = update(pool, [replica(10)], 2.0)
    assert (found["cuda:0"].memory, found["cuda:1"].memory) == (20 * GIB, 79 * GIB)


def test_memory_of_starting_or_exited_worker_is_not_foreign() -> None:
    pool = DevicePool(GPUS)
    update(pool, [replica(10)], 1.0)  # it started during the driver reading
    pool.update([MemoryReading("cuda:0", 24 * GIB, 16 * GIB)], ())
    assert update(pool, [], 2.0)["cuda:0"].memory == 24 * GIB
    pool.update([MemoryReading("cuda:0", 24 * GIB, 16 * GIB)], {"cuda:0"})  # it exited meanwhile
    assert update(pool, [], 2.0)["cuda:0"].memory == 24 * GIB


def test_driver_fault_lasts_as_long_as_reported() -> None:
    pool = DevicePool(GPUS)
    pool.update([MemoryReading("cuda:0", None, fault="the driver says: GPU is lost")], ())
    assert update(pool, [], 0.0)["cuda:0"].fault == "the driver says: GPU is lost"
    assert pool.devices(0.0)["cuda:1"].fault == ""
    pool.update([MemoryReading("cuda:0", 24 * GIB)], ())
    assert update(pool, [], 0.0)["cuda:0"].fault == ""


def test_repeated_crashes_quarantine_listed_and_unlisted() -> None:
    for pool in (DevicePool(GPUS), DevicePool()):
        well = Replica(WorkerProcess("x", "m", "cuda:1", 8, 0.0, None, 1.0), Stage.READY)
        for at in (10.0, 20.0, 30.0):
            pool.on_crash(Exit(WorkerProcess("w", "m", "cuda:0", 7, at - 1), at, 1))
        assert update(pool, [well], 31.0)["cuda:0"].fault == "3 crashes in a row; tried again in 300 s"
        assert [device.name for device in update(pool, [well], 400.0).values() if device.fault] == []


def test_reading_of_a_faulty_device_is_no_foreign_memory() -> None:
    pool = DevicePool(GPUS)
    pool.update([MemoryReading("cuda:0", 24 * GIB, 9 * GIB, fault="the driver says: GPU is lost")], ())
    assert update(pool, [], 0.0)["cuda:0"].memory == 24 * GIB


def test_other_programs_may_use_more_than_the_device_has() -> None:
    pool = DevicePool(GPUS)
    pool.update([MemoryReading("cuda:0", 24 * GIB, 25 * GIB)], ())
    assert update(pool, [], 0.0)["cuda:0"].memory == 0


def box(used: float, *, silent: bool = False) -> Machine:
    reading = MemoryReading("box/cuda:0", 24 * GIB, int(used * GIB))
    return Machine("box", [Device("box/cuda:0", 24 * GIB)], frozenset(), 0.0, silent=silent, readings=[reading])


def test_readings_of_a_machine_end_with_it() -> None:
    pool = DevicePool(GPUS)
    pool.set_machines([box(4)], {})
    assert pool.devices(0.0)["box/cuda:0"].memory == 20 * GIB
    pool.set_machines([box(9, silent=True)], {})
    assert pool.devices(0.0)["box/cuda:0"].memory == 20 * GIB, "the last report of a silent machine is old"
    pool.set_machines([], {})
    assert "box/cuda:0" not in pool.devices(0.0)
    assert "box/cuda:0" not in pool.sensors


def test_sensors_are_those_of_the_last_reading() -> None:
    pool = DevicePool([Device("cuda:0", 24 * GIB)])
    assert "cuda:0" not in pool.sensors
    pool.update([MemoryReading("cuda:0", 24 * GIB, sensors=GpuSensors(61.0, 412.0, 0.9))], ())
    assert pool.sensors["cuda:0"] == GpuSensors(61.0, 412.0, 0.9)
    pool.update([MemoryReading("cuda:0", None, fault="the driver says: GPU is lost")], ())
    assert pool.sensors["cuda:0"] == GpuSensors()
    assert "cpu:0" not in pool.sensors
