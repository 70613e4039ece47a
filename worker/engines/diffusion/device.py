"""How the engine and the device keep out of each other's way: copies, order between streams, and what can go wrong.

A GPU works behind the loop's back. Nothing in a step asks it for a value; what has to wait for it, waits in another
thread and on another stream.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import torch

from worker.engine import DeviceLost, OutOfMemory


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor of main memory on the device. From pinned memory, so that nobody waits for the steps in between."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def translate_device_errors(device: torch.device, what: str) -> Iterator[None]:
    """Tells a device that is full (`OutOfMemory`) or gone (`DeviceLost`) from all other errors, which pass through.

    `what` names what was attempted.
    """
    try:
        yield
        return
    except RuntimeError as error:
        device_error = _device_error(error, what)
        if device_error is None:
            raise
        # The frames of the failed attempt hold its tensors, and the next attempt needs their memory.
        traceback.clear_frames(error.__traceback__)
    if device.type == "cuda" and isinstance(device_error, OutOfMemory):
        torch.cuda.empty_cache()
    raise device_error


def _device_error(error: RuntimeError, what: str) -> OutOfMemory | DeviceLost | None:
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        return OutOfMemory(f"{what} did not fit into memory: {error}")
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
        return DeviceLost(f"{what}: {error}")
    return None


class CompletionEvent:
    """Lets the loop be one step ahead of the device.

    One keeps it busy; more would let newcomers wait for steps that are queued already, and would measure the queueing
    instead of the step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        #: Done when the device has done the last step that it was told.
        self.event: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Until the step that `mark` stood behind is done."""
        if self.event is not None:
            self.event.synchronize()

    def record(self) -> None:
        """Stand behind all that the device was told so far."""
        self.event = record_event(self._device)


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """What this thread has told the device so far, as something to wait for; None where nothing is pending."""
    if device.type == "cpu":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


class SideStream:
    """A stream for work beside the steps: it neither waits for the steps told later nor holds them up."""

    def __init__(self, device: torch.device) -> None:
        stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream = stream

    @contextlib.contextmanager
    def after(self, event: torch.cuda.Event | None, *tensors: torch.Tensor) -> Iterator[None]:
        """Work in here happens after the event, and on these tensors as they are then."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            if event is not None:
                self._stream.wait_event(event)
            for tensor in tensors:
                tensor.record_stream(self._stream)
            yield
