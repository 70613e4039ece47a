"""NVML readings of a real GPU."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.gpu


def test_nvml_reports_memory_and_processes() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from host.gpus import GpuMonitor, list_gpus

    gpus = list_gpus()
    watch = GpuMonitor(gpus)
    watch.open()
    try:
        before = watch.read()
        held = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
        after = watch.read()
        assert [reading.device for reading in after] == [gpu.device for gpu in gpus]
        assert all(reading.fault == "" for reading in after)
        temperatures = [reading.sensors.temperature_c for reading in after]
        assert all(temperature is None or 0 < temperature < 120 for temperature in temperatures)
        assert max(b.used_bytes - a.used_bytes for a, b in zip(before, after, strict=True)) >= held.numel()
        # In a container, the driver may report host process ids, or none.
        reported = {pid: size for reading in after for pid, size in reading.processes.items()}
        assert reported.get(os.getpid(), held.numel()) >= held.numel()
    finally:
        watch.close()
