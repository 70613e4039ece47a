"""Whether this process can use the GPU that it was given. Each problem is one sentence for the operator."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from worker.engine import DeviceLost, UnsupportedModel


def check_build(device: torch.device) -> None:
    """Raises `UnsupportedModel` if this build of torch has no support for GPUs. Does not use the device."""
    if device.type == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        raise UnsupportedModel(
            f"device {device}: torch {torch.__version__} is built for CPUs only; for a GPU install a build of torch "
            "with CUDA, or set devices.use: cpu"
        )


def open_gpu(device: torch.device) -> None:
    """Make the GPU the current one. Raises `UnsupportedModel` or, on another GPU than assigned, `DeviceLost`."""
    if device.type != "cuda":
        return
    check_build(device)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise UnsupportedModel(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use the GPU: {reason}; the driver may be "
            "too old for this build, see nvidia-smi"
        ) from error
    visible = torch._C._cuda_getDeviceCount()
    if not is_assigned(os.environ, visible):
        # A library used CUDA before the environment named the device, which fixed the set of visible GPUs.
        raise DeviceLost(f"this process sees {visible} GPUs in place of the one that it was assigned")
    found, assigned = _uuid_of(device), _assigned_uuid(os.environ)
    if not is_same_gpu(found, assigned):
        raise DeviceLost(f"this process sees GPU {found} in place of the one that it was assigned, {assigned}")


def is_assigned(environment: Mapping[str, str], visible: int) -> bool:
    """Return false if the environment names one GPU but CUDA shows this process another number of them."""
    number = environment.get("CUDA_VISIBLE_DEVICES", "")
    return not number.isdecimal() or visible == 1


def is_same_gpu(found: str, assigned: str) -> bool:
    """Return false if both UUIDs are known and differ. CUDA's lack the prefix of the driver's."""
    return not found or not assigned or found.removeprefix("GPU-") == assigned.removeprefix("GPU-")


def _uuid_of(device: torch.device) -> str:
    """Return CUDA's UUID of the GPU; empty if this version of torch does not say it."""
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))


def _assigned_uuid(environment: Mapping[str, str]) -> str:
    """Return the driver's UUID of the GPU that the environment names by its number; empty if it is not known."""
    number = environment.get("CUDA_VISIBLE_DEVICES", "")
    if not number.isdecimal() or environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return ""
    try:
        from host.gpus import uuid_of
    except ImportError:  # the engine has an environment of its own
        return ""
    return uuid_of(int(number))


def computes_bfloat16(device: torch.device) -> bool:
    """Return true if the device has bfloat16 arithmetic; cards before 2020 only emulate it, slowly."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
