"""Symbolic links on a path."""

from __future__ import annotations

import errno
from pathlib import Path


def is_link_loop(path: Path) -> bool:
    """Return whether a link on the path leads back to itself. `Path.resolve` tells that up to Python 3.12 only."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
