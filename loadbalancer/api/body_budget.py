"""Memory for request bodies, shared by all connections, with a limit for each API key."""

from __future__ import annotations

from collections import Counter
from typing import NoReturn

from starlette.requests import Request
from starlette.types import Message, Receive

from loadbalancer.access.api_keys import ANONYMOUS
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.schema.errors import TooBusy

CODE = "body_memory_full"
KEY_CODE = "body_memory_of_key_full"


class BodyBudget:
    """Counts the bytes of bodies that requests hold: while they are read, decoded and checked, not in the queue."""

    def __init__(self, max_bytes: int, max_bytes_per_key: int, refusals: RefusalCounter) -> None:
        """Requests without a key have no limit of their own: they are one owner, and often all that there are."""
        self._max = max_bytes
        self._max_per_key = max_bytes_per_key
        self._refusals = refusals
        self._held: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<BodyBudget {self.held} of {self._max} bytes, {len(self._held)} owners>"

    @property
    def held(self) -> int:
        """Bytes of all owners."""
        return self._held.total()

    def add(self, owner: str, size: int) -> None:
        """Raises `TooBusy` without a change if there is no room."""
        if owner != ANONYMOUS and self._held[owner] + size > self._max_per_key:
            self._refuse(KEY_CODE, "The bodies of this API key's other requests fill the memory for them.")
        if self.held + size > self._max:
            self._refuse(CODE, "The bodies of other requests fill the memory for them.")
        self._held[owner] += size

    def remove(self, owner: str, size: int) -> None:
        self._held[owner] -= size
        if not self._held[owner]:
            del self._held[owner]

    def _refuse(self, code: str, reason: str) -> NoReturn:
        self._refusals.add(code)
        text = f"{reason} Please try again shortly."
        # The rest of the body is not read.
        raise TooBusy(text, code=code, retry_after_s=1, headers={"connection": "close"})


class BodyReservation:
    """The part of one request. It ends with the request, or earlier with `release`."""

    def __init__(self, budget: BodyBudget, owner: str) -> None:
        self._budget = budget
        self._owner = owner
        self._size = 0
        self._is_released = False

    def add(self, size: int) -> None:
        """Raises `TooBusy` if there is no room."""
        if not self._is_released:
            self._budget.add(self._owner, size)
            self._size += size

    def remove(self, size: int) -> None:
        if not self._is_released:
            self._budget.remove(self._owner, size)
            self._size -= size

    def release(self) -> None:
        """The body is not held any more. What follows of it is discarded, and not counted."""
        self._budget.remove(self._owner, self._size)
        self._size, self._is_released = 0, True

    def counting(self, receive: Receive) -> Receive:
        """Return `receive` such that it adds what it receives. It raises `TooBusy`."""

        async def count_and_receive() -> Message:
            message = await receive()
            if body := message.get("body"):
                self.add(len(body))
            return message

        return count_and_receive


def body_reservation(request: Request) -> BodyReservation:
    """The reservation that `ApiMiddleware` has made, for any body that is not small."""
    found = request.state.body
    assert isinstance(found, BodyReservation)
    return found
