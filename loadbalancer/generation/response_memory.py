"""Memory for images and responses that clients have not read yet, with a limit for each API key."""

from __future__ import annotations

from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.schema.errors import TooBusy

CODE = "response_memory_of_key_full"


class ResponseMemory:
    """Counts the bytes that each owner's requests hold. Without API keys, all requests have one owner.

    What is under way may exceed the limit: it is ready, and its client waits for it. New requests are refused then.
    """

    def __init__(self, max_bytes_per_key: int, refusals: RefusalCounter) -> None:
        self._max = max_bytes_per_key
        self._refusals = refusals
        self._held: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<ResponseMemory {self.held} bytes, {len(self._held)} owners>"

    @property
    def held(self) -> int:
        """Bytes of all owners."""
        return sum(self._held.values())

    def check(self, owner: str) -> None:
        """Raises `TooBusy` where the owner's responses fill its memory."""
        if self._held.get(owner, 0) >= self._max:
            self._refusals.add(CODE)
            text = (
                "Results that the clients of this API key have not read fill the memory for them. "
                "Please read them, or try again later."
            )
            raise TooBusy(text, code=CODE, retry_after_s=5)

    def add(self, owner: str, size: int) -> None:
        self._held[owner] = self._held.get(owner, 0) + size

    def remove(self, owner: str, size: int) -> None:
        left = self._held.get(owner, 0) - size
        if left:
            self._held[owner] = left
        else:
            self._held.pop(owner, None)
