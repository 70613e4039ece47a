"""Which GPUs `CUDA_VISIBLE_DEVICES` selects, and that what it names is never replaced by a CPU."""

from __future__ import annotations

import pytest

from host.types import SetupError
from host.visible_devices import GpuId, visible_gpus

GPUS = [GpuId(0, "GPU-a000-1"), GpuId(1, "GPU-b000-2"), GpuId(2, "GPU-b111-3")]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("none", []),
        ("void", []),
        ("1", [1]),
        ("01", [1]),
        ("2, 0", [0, 2]),
        ("0,0", [0]),
        ("0,-1,1", [0]),
        ("0,", [0]),
        ("GPU-b0", [1]),
        ("GPU-a000-1,2", [0, 2]),
    ],
)
def test_variable_selects_gpus(allowed: str | None, expected: list[int]) -> None:
    assert visible_gpus(GPUS, allowed) == expected


@pytest.mark.parametrize("allowed", [None, "", "-1", "void"])
def test_machine_without_gpus_serves_on_its_cpu(allowed: str | None) -> None:
    assert visible_gpus([], allowed) == []


@pytest.mark.parametrize(
    ("present", "allowed", "message"),
    [
        (GPUS, "MIG-5a1b-22", "names MIG-5a1b-22; parts of a GPU (MIG) cannot be used: name a whole GPU"),
        (GPUS, "MIG-GPU-a000-1/1/0", "parts of a GPU (MIG) cannot be used"),
        (GPUS, "0,MIG-5a1b-22", "names MIG-5a1b-22"),
        ([], "MIG-5a1b-22", "set devices.use: cpu"),
        ([], "0", "names 0, but no NVIDIA GPU or driver is found here; to serve on the CPU, set devices.use: cpu"),
        ([], "GPU-a000-1", "names GPU-a000-1, but no NVIDIA GPU"),
        (GPUS, "3", "names 3, which is no GPU of this machine; its GPUs: 0 (GPU-a000-1), 1 (GPU-b000-2)"),
        (GPUS, "0,7", "names 7, which is no GPU of this machine"),
        (GPUS, "GPU-c", "names GPU-c, which is no GPU of this machine"),
        (GPUS, "GPU-b", "names GPU-b, which matches several GPUs"),
        (GPUS, "cuda:0", "names cuda:0, which is no GPU of this machine"),
    ],
)
def test_unusable_device_is_rejected(present: list[GpuId], allowed: str, message: str) -> None:
    with pytest.raises(SetupError) as raised:
        visible_gpus(present, allowed)
    assert message in str(raised.value)
