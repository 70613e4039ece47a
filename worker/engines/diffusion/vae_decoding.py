"""Decoding that fits into memory: in tiles, and between two steps if there is no room beside them.

A decode allocates more than anything else in a worker, and beside the steps. All steps of an image are paid for when it
begins, so it is tried again with less memory before the image fails.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch

from worker.device_errors import device_error_kind
from worker.engine import OutOfMemory
from worker.engines import torch_device as devices

log = logging.getLogger(__name__)

T = TypeVar("T")
Tiling = Literal["auto", "on", "off"]

#: `auto`: larger images are decoded in tiles on a GPU.
_MAX_UNTILED_PIXELS = 1_500_000
#: Side of a tile in pixels.
_TILE = 512


class StepGate:
    """Lets a decode run between two steps: the next step waits for it."""

    def __init__(self) -> None:
        self._turnstile = threading.Lock()
        self._running = threading.Lock()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Run a step."""
        with self._turnstile:  # a waiting decode goes first
            self._running.acquire()
        try:
            yield
        finally:
            self._running.release()

    @contextlib.contextmanager
    def between_steps(self, device: torch.device) -> Iterator[None]:
        """Run while no step does, with the memory that steps leave in the allocator's cache."""
        with self._turnstile, self._running:
            devices.synchronize(device)
            devices.empty_cache(device)
            yield


def tiled(vae: Any) -> Any:
    """Return a copy of the autoencoder that decodes in tiles, with the same weights; the same one if it cannot."""
    made = copy.copy(vae)  # others may use the original at the same time
    try:
        made.enable_tiling()
    except (AttributeError, NotImplementedError):
        return vae
    if isinstance(getattr(made, "tile_latent_min_size", None), int):
        factor = max(made.tile_sample_min_size // made.tile_latent_min_size, 1)
        made.tile_sample_min_size = min(made.tile_sample_min_size, _TILE)
        made.tile_latent_min_size = max(made.tile_sample_min_size // factor, 1)
    return made


def needs_tiles(tiling: Tiling, pixels: int, device: torch.device) -> bool:
    """Return true if images of this size are decoded in tiles from the start."""
    return tiling == "on" or (tiling == "auto" and device.type == "cuda" and pixels > _MAX_UNTILED_PIXELS)


def decode_with_retries(attempts: Sequence[Callable[[], T]], gate: StepGate, device: torch.device) -> T:
    """Return the result of the first attempt that fits into memory; all but the first run between two steps.

    Raises the last one's error. Each may raise `OutOfMemory`, or torch's own errors.
    """
    first, *others = attempts
    failed = _try(first)
    for attempt in others:
        if not isinstance(failed, _NoMemory):
            break
        log.info("decoding again between two steps: %s", failed.text)
        with gate.between_steps(device):
            failed = _try(attempt)
    if isinstance(failed, _NoMemory):
        raise OutOfMemory(failed.text)
    return failed


class _NoMemory:
    """An attempt did not fit. It keeps no frames, which hold tensors."""

    def __init__(self, text: str) -> None:
        self.text = text


def _try(attempt: Callable[[], T]) -> T | _NoMemory:
    try:
        return attempt()
    except OutOfMemory as error:
        return _NoMemory(str(error))
    except (RuntimeError, MemoryError) as error:
        if device_error_kind(error) != "out_of_memory":
            raise
        return _NoMemory(str(error))
