"""Imports of large libraries. torch and diffusers build a million objects, and almost none of them is ever garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Search for no garbage while the block imports. What exists at its end is in no later search.

    Python would search all objects each time their number has grown by a quarter.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
