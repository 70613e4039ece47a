"""Monitors the devices while the server runs: driver readings, faults, and the measured memory of workers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from configs.files import atomic_write, describe_os_error
from configs.paths import cache_dir
from controller.planning.device_pool import DevicePool

if TYPE_CHECKING:
    from host.gpus import Gpu, GpuMonitor

log = logging.getLogger("controller")

_INTERVAL_S = 1.0
_INTERVALS_PER_DRIVER_READING = 5


def load_measured_memory(data_dir: Path) -> dict[str, int]:
    """Return the measured memory of workers in bytes, by what they load; empty if it cannot be read."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(_file(data_dir).read_bytes(), type=dict[str, int])
    return {}


@contextlib.asynccontextmanager
async def monitor_devices(pool: DevicePool, gpus: Sequence[Gpu], data_dir: Path) -> AsyncIterator[None]:
    """Monitor while the block runs."""
    driver = None
    if gpus:
        from host.gpus import GpuMonitor

        driver = GpuMonitor(gpus)
        # Before any worker starts: memory in use now belongs to other programs.
        await asyncio.to_thread(driver.open)
        pool.update(await asyncio.to_thread(driver.read), pool.occupied)
    task = asyncio.create_task(_monitor(pool, driver, data_dir))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if driver is not None:
            driver.close()


async def _monitor(pool: DevicePool, driver: GpuMonitor | None, data_dir: Path) -> None:
    faults: dict[str, str] = {}
    saved = dict(pool.measured)
    for interval in itertools.count(1):
        await asyncio.sleep(_INTERVAL_S)
        if driver is not None and interval % _INTERVALS_PER_DRIVER_READING == 0:
            occupied = pool.occupied
            pool.update(await asyncio.to_thread(driver.read), occupied)
        devices = pool.devices(time.monotonic())
        previous, faults = faults, {device.name: device.fault for device in devices.values() if device.fault}
        log_changes(previous, faults, devices.keys())
        if pool.measured != saved:
            saved = dict(pool.measured)
            await asyncio.to_thread(_save, data_dir, saved)


def log_changes(before: Mapping[str, str], now: Mapping[str, str], devices: Collection[str]) -> None:
    """Log the faults that are new, and those that are over. `devices`: those that there still are."""
    for device in now.keys() - before.keys():
        log.error("%s is not used: %s", device, now[device])
    for device in (before.keys() - now.keys()) & set(devices):
        log.warning("%s is used again", device)


def _save(data_dir: Path, values: Mapping[str, int]) -> None:
    try:
        atomic_write(_file(data_dir), msgspec.json.encode(values))
    except OSError as error:
        log.warning("the memory of workers is measured again after a restart: %s", describe_os_error(error))


def _file(data_dir: Path) -> Path:
    return cache_dir(data_dir) / "gpu_memory.json"
