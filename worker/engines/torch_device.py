"""Device helpers: pinned copies, events, side streams and the translation of device errors.

A GPU runs asynchronously. No step reads a value back from it; work that must wait for the device runs in another thread
and on another stream.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Literal

import psutil
import torch

from worker.device_errors import device_error_kind
from worker.engine import DeviceLost, OutOfMemory, TaskError

#: Threads of a worker on a GPU: it draws noise and plans schedules on the CPU.
_GPU_WORKER_THREADS = 4
#: GPU memory of a process besides its tensors: context, kernels, libraries.
CONTEXT_BYTES = 600 << 20


def select_device(name: str) -> torch.device:
    """Return the device for `cuda:N` or `cpu`, optionally with a slot number."""
    return torch.device("cpu" if name.startswith("cpu") else name)


def limit_cpu_threads(device: torch.device) -> None:
    """Bound torch's threads: workers share the cores, and more threads per worker would slow all of them down."""
    torch.set_num_threads(1 if device.type == "cpu" else min(torch.get_num_threads(), _GPU_WORKER_THREADS))


def environment(device: torch.device, library: str) -> str:
    """Return a text that names the device and the versions of torch and of the library."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}, {library} {version(library)}"


def memory_bytes(device: torch.device) -> int:
    """Return torch's peak GPU memory, or the resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


def limit_memory(device: torch.device, declared: int | Literal["auto"]) -> None:
    """Bound this process's share of the device: `declared` bytes, of which the context takes some."""
    if device.type == "cuda" and declared != "auto":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(declared, total), device)


def memory_fraction(declared: int, total: int) -> float:
    """Return the part of `total` bytes that torch may allocate."""
    return min(max((declared - CONTEXT_BYTES) / total, 0.01), 1.0)


def trim_memory(device: torch.device) -> bool:
    """Return unused memory to the device and forget the peak. False on a CPU."""
    if device.type != "cuda":
        return False
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return True


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        with translate_device_errors(device, "waiting for the device"):
            torch.cuda.synchronize(device)


def empty_cache(device: torch.device) -> None:
    """Return the allocator's unused memory to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to the device. Pinned memory avoids waiting for queued steps."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def translate_device_errors(device: torch.device, what: str) -> Iterator[None]:
    """Raise `OutOfMemory` or `DeviceLost` for torch's device errors; other errors pass through.

    `what` names the attempted work in the message.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        kind = device_error_kind(error)
        if kind is None or kind == "refused":
            raise
        text = str(error)
        # The frames of the failed attempt hold tensors, whose memory the next attempt needs.
        traceback.clear_frames(error.__traceback__)
    if kind == "lost":
        raise DeviceLost(f"{what}: {text}")
    empty_cache(device)
    raise OutOfMemory(f"{what} did not fit into memory: {text}")


def row_error(error: Exception, what: str) -> TaskError:
    """Return the error of one row whose state could not be computed. Raises `error` if the device is lost."""
    kind = device_error_kind(error)
    if kind == "lost":
        raise error
    return TaskError("out_of_memory" if kind == "out_of_memory" else "error", f"{what}: {error}")


class CompletionEvent:
    """Keeps the step loop one step ahead of the device.

    One step ahead keeps the device busy. With more, new requests would wait for queued steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        #: Recorded after the last queued step.
        self.event: torch.cuda.Event | None = None

    def record(self) -> None:
        """Note that a step has been queued, and wait until the step before it has finished."""
        before, self.event = self.event, record_event(self._device)
        if before is not None:
            before.synchronize()


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """Record an event after all work that this thread has queued; None on a CPU."""
    if device.type == "cpu":
        return None
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waiting must not take a core
    event.record(torch.cuda.current_stream(device))
    return event


class SideStream:
    """A CUDA stream for work beside the steps: neither waits for the other."""

    def __init__(self, device: torch.device) -> None:
        stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream = stream

    @contextlib.contextmanager
    def after(self, event: torch.cuda.Event | None, *tensors: torch.Tensor) -> Iterator[None]:
        """Run the block on this stream, after the event. The tensors stay allocated until it is done."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            if event is not None:
                self._stream.wait_event(event)
            for tensor in tensors:
                tensor.record_stream(self._stream)
            yield

    def synchronize(self) -> None:
        """Wait until the device has finished all work on this stream."""
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                event = record_event(self._stream.device)
            assert event is not None
            event.synchronize()


def keep_for_steps(tensors: Iterable[torch.Tensor]) -> None:
    """Let the current stream use tensors of another one: their memory is reused after its work, not before."""
    for tensor in tensors:
        if tensor.device.type == "cuda":
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
