"""Results of an engine that are neither plain values nor arrays: errors of one item, and bytes with a type."""

from __future__ import annotations

from typing import NamedTuple


class Failed(Exception):  # it is returned as often as raised
    """One item failed, the others are unaffected. Return it in place of the item's result, or raise it.

    The text goes to the client. `status` is an HTTP status: 400 to 499 is the client's mistake, 500 the engine's.
    `param` names the wrong field of the input.
    """

    def __init__(self, message: str, *, status: int = 500, param: str = "") -> None:
        """Raises `ValueError` for a status outside 400 to 599."""
        super().__init__(message)
        if not 400 <= status <= 599:
            raise ValueError(f"status must be between 400 and 599, not {status}")
        self.message = message
        self.status = status
        self.param = param


class Content(NamedTuple):
    """Bytes with their media type, such as an encoded image."""

    data: bytes
    media_type: str = "application/octet-stream"
