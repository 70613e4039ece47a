"""The processor cores and the main memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from host.cgroups import read_limits


def cpu_cores() -> int:
    """Return the number of whole cores that this process may use, by its affinity and the quota of its container."""
    allowed, quota = len(os.sched_getaffinity(0)), read_limits(_read_text).cpus
    return allowed if quota is None else max(min(allowed, int(quota)), 1)


def available_memory() -> int:
    """Return the bytes of main memory that are free for workers, within the limit of the container."""
    limits, free = read_limits(_read_text), int(psutil.virtual_memory().available)
    return free if limits.memory_bytes is None else min(free, max(limits.memory_bytes - (limits.memory_used or 0), 0))


def _read_text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
