"""What engines of diffusers' pipelines do with their device."""

from __future__ import annotations

import torch

from worker.engines import torch_device as devices


class DeviceEngine:
    """Implements the part of `StepEngine` that depends on the device only."""

    _device: torch.device

    def close(self) -> None:
        """The process ends, which frees the device."""

    def trim_memory(self) -> bool:
        return devices.trim_memory(self._device)

    def memory_bytes(self) -> int:
        return devices.memory_bytes(self._device)

    @property
    def steps_ahead(self) -> bool:
        return self._device.type == "cuda"

    def synchronize(self) -> None:
        devices.synchronize(self._device)
