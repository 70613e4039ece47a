"""Memory for input that is not a request yet, shared by all connections."""

from __future__ import annotations

#: Of all connections together.
MAX_INPUT_BYTES = 4 * 2**20
#: Of each connection, so much is not counted: the headers of an ordinary request.
FREE_BYTES = 2 * 2**10


class InputBudget:
    """Counts bytes of incomplete headers, and of requests that wait for the response to an earlier one."""

    def __init__(self, max_bytes: int = MAX_INPUT_BYTES) -> None:
        self._max = max_bytes
        self.held = 0

    def __repr__(self) -> str:
        return f"<InputBudget {self.held} of {self._max} bytes>"

    def change(self, before: int, after: int) -> bool:
        """Count `after` bytes of a connection in place of `before`.

        Return False if it holds bytes while all connections hold more than the maximum, even if they become fewer.
        """
        self.held += after - before
        return after == 0 or self.held <= self._max
