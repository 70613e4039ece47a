"""Has the C library return large blocks of memory to the system as soon as they are free.

By itself glibc does so with the first ones only. After the first large block it keeps those of up to 32 MiB on its
heap, where one small object behind them holds them back: a server would never give back what large bodies took.
"""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
#: Smaller blocks are reused. Those of a body or an image from here on are mapped, at about 0.1 ms per MiB.
LARGE_BYTES = 1 << 20


def return_large_blocks() -> None:
    """Map blocks of at least `LARGE_BYTES` from now on. A C library other than glibc is left as it is."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, LARGE_BYTES)
