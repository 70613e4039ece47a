"""Ids of requests."""

from __future__ import annotations

import itertools
import os

_prefix = os.urandom(12).hex()
_numbers = itertools.count(int.from_bytes(os.urandom(3)))


def new_request_id() -> str:
    """Return 32 hexadecimal digits: those of this process, and a number. They are unique, and no secret."""
    return f"{_prefix}{next(_numbers) & 0xFFFFFFFF:08x}"
