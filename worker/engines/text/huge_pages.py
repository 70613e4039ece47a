"""Puts weights on huge pages: a CPU core that reads all of them in each step then translates fewer addresses."""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections.abc import Iterable

import torch

from worker.engines.text.packed_linears import PackedLinear

log = logging.getLogger(__name__)

_PAGE_BYTES = 2 << 20
#: Of Linux since 6.1: copies a range onto a huge page at once, whatever the system does by itself.
_MADV_COLLAPSE = 25
#: Weights of a smaller model stay in the processor's caches.
_LEAST_BYTES = 64 << 20


def use_huge_pages(network: torch.nn.Module, least_bytes: int = _LEAST_BYTES) -> threading.Thread | None:
    """Move packed weights onto huge pages, beside the first steps. Return the thread that does; None for none.

    Their content stays as it is, and whoever reads it meanwhile waits for a page at most.
    """
    regions = [each.memory() for each in network.modules() if isinstance(each, PackedLinear)]
    if not sys.platform.startswith("linux") or sum(size for _, size in regions) < least_bytes:
        return None
    thread = threading.Thread(target=_collapse, args=(huge_pages(regions),), name="huge-pages", daemon=True)
    thread.start()
    return thread


def huge_pages(regions: Iterable[tuple[int, int]]) -> list[int]:
    """Return the addresses of the huge pages that hold regions, given by address and bytes, in order."""
    starts = {
        page * _PAGE_BYTES
        for address, size in regions
        for page in range(address // _PAGE_BYTES, -(-(address + size) // _PAGE_BYTES))
    }
    return sorted(starts)


def _collapse(pages: list[int]) -> int:
    """Return how many of these pages are huge ones now. A page at an end may belong to no memory."""
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    moved: int = sum(advise(page, _PAGE_BYTES, _MADV_COLLAPSE) == 0 for page in pages)
    log.info("%d of %d MiB of weights are on huge pages", moved * 2, len(pages) * 2)
    return moved
