"""Finished pictures until a balancer has them: one that dies must not take along what was sent to it.

Every heartbeat is answered once, in order, by a balancer that knows the worker, and so is its Hello. So the answers
since the last Hello tell which heartbeat was read, and with it all that was sent before. Pure, and not thread-safe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from wire.codec import WorkerEnvelope
from wire.messages import Finished

#: What is kept at most; the oldest gives way, and would be computed again.
MOST_BYTES = 64 * 2**20
#: Hello's answer; a heartbeat that may have overtaken the picture on its way to the socket; and one that has not.
_ANSWERS = 3


class _Kept(NamedTuple):
    envelope: WorkerEnvelope
    attempt: int
    bytes: int
    #: It has arrived when there are so many answers.
    answers: int


class Unread:
    """What was finished of late, by task."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._beats = 0
        self._answers = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __repr__(self) -> str:
        return f"<Unread {len(self)} pictures, {self._bytes} bytes>"

    def put(self, message: Finished, image: bytes) -> WorkerEnvelope:
        """Keep the picture; gives what is to be sent."""
        envelope = WorkerEnvelope(message, [image])
        self.drop(message.task)
        self._kept[message.task] = _Kept(envelope, message.attempt, len(image), self._beats + _ANSWERS)
        self._bytes += len(image)
        while self._bytes > self._most_bytes:
            self.drop(next(iter(self._kept)))
        return envelope

    def drop(self, task: str) -> None:
        """Its picture is of no use any more, if there is one."""
        kept = self._kept.pop(task, None)
        if kept is not None:
            self._bytes -= kept.bytes

    def beat(self) -> None:
        """A heartbeat is being sent."""
        self._beats += 1

    def welcomed(self) -> None:
        """A balancer has answered."""
        self._answers += 1
        for task, kept in list(self._kept.items()):
            if kept.answers > self._answers:
                return
            self.drop(task)

    def introduce(self) -> dict[str, tuple[int, WorkerEnvelope]]:
        """Hello is being said, and these come with it: the attempt of each task, and its picture to be sent anew."""
        self._beats = self._answers = 0
        self._kept = OrderedDict((task, kept._replace(answers=_ANSWERS)) for task, kept in self._kept.items())
        return {task: (kept.attempt, kept.envelope) for task, kept in self._kept.items()}
