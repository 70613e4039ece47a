"""Results until a balancer has acknowledged them, so that a balancer that dies does not lose them.

The balancer answers the Hello and every heartbeat of a worker that it knows, once and in order. The number of answers
since the last Hello therefore tells which heartbeat it has read, and with it all messages sent before. Pure, and not
thread-safe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wire.messages import Finished

#: Upper limit of the stored bytes. The oldest result is dropped first; its task would be computed again.
MAX_BYTES = 64 * 2**20
#: The answer to Hello, to a heartbeat that may have overtaken the result, and to the heartbeat after it.
_ANSWERS = 3


class _UnackedResult(NamedTuple):
    message: Finished
    frames: Sequence[bytes]
    size: int
    #: The result has arrived when so many answers have come since Hello.
    acked_at: int


class UnackedResults:
    """Results by task, oldest first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._results: OrderedDict[str, _UnackedResult] = OrderedDict()
        self._bytes = 0
        self._heartbeats = 0
        self._answers = 0

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __repr__(self) -> str:
        return f"<UnackedResults {len(self)} results, {self._bytes} bytes>"

    def add(self, message: Finished, frames: Sequence[bytes], size: int) -> None:
        """Store the result, whose frames have `size` bytes together."""
        if message.task in self._results:
            self.discard(message.task)
        self._results[message.task] = _UnackedResult(message, frames, size, self._heartbeats + _ANSWERS)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self.discard(next(iter(self._results)))

    def discard(self, task: str) -> None:
        result = self._results.pop(task, None)
        if result is not None:
            self._bytes -= result.size

    def on_heartbeat(self) -> None:
        """Count a heartbeat that is about to be sent."""
        self._heartbeats += 1

    def on_ack(self) -> None:
        """Count an answer of the balancer and drop what it has read."""
        self._answers += 1
        for task, result in list(self._results.items()):
            if result.acked_at > self._answers:
                return
            self.discard(task)

    def on_hello(self) -> list[tuple[Finished, Sequence[bytes]]]:
        """Start counting again and return the results to send after Hello."""
        self._heartbeats = self._answers = 0
        self._results = OrderedDict((task, each._replace(acked_at=_ANSWERS)) for task, each in self._results.items())
        return [(each.message, each.frames) for each in self._results.values()]
