"""Whose turn it is: start-time fair queueing between owners (Goyal, Vin and Cheng, 1996). Pure.

Every owner has a tag, in virtual seconds: the work it was given, divided by its weight. The waiting owner with the
lowest tag goes next, so while two owners both wait they are given work in proportion to their weights, to within one
task each. The clock is the tag that was served last. An owner that comes anew starts at the clock: it is neither owed
for the time in which it wanted nothing, nor made to wait for what others did meanwhile.
"""

from __future__ import annotations

from sortedcontainers import SortedList

#: Owners that do not wait are forgotten once there are so many, unless they have had more than their share.
_REMEMBERED = 64


class FairShare:
    """The owners' tags. Every operation takes logarithmic time in the number of owners."""

    def __init__(self) -> None:
        self._clock = 0.0
        self._tags: dict[str, float] = {}
        self._line: SortedList[tuple[float, str]] = SortedList()
        self._waiting: set[str] = set()

    def __repr__(self) -> str:
        return f"<Shares {len(self._waiting)} owners waiting, clock {self._clock:.3f}>"

    def tag(self, owner: str) -> float:
        """Where the owner stands, or would if it came now."""
        tag = self._tags.get(owner, self._clock)
        return tag if owner in self._waiting else max(tag, self._clock)

    def first(self) -> str | None:
        """The owner whose turn it is; None where none waits."""
        return self._line[0][1] if self._line else None

    def join(self, owner: str) -> None:
        """The owner has something that waits. Idempotent."""
        if owner not in self._waiting:
            self._tags[owner] = self.tag(owner)
            self._waiting.add(owner)
            self._line.add((self._tags[owner], owner))

    def leave(self, owner: str) -> None:
        """Nothing of the owner waits any more. Idempotent."""
        if owner in self._waiting:
            self._line.remove((self._tags[owner], owner))
            self._waiting.discard(owner)
            if len(self._tags) > 2 * len(self._waiting) + _REMEMBERED:
                self._tags = {
                    name: tag for name, tag in self._tags.items() if name in self._waiting or tag > self._clock
                }

    def serve(self, owner: str) -> None:
        """It is the owner's turn: the clock moves on to it."""
        self._clock = max(self._clock, self.tag(owner))

    def charge(self, owner: str, seconds: float) -> None:
        """The owner is given work: `seconds` of it, divided by its weight. Less than none takes it back."""
        tag = self.tag(owner)
        if owner in self._waiting:
            self._line.remove((tag, owner))
            self._line.add((tag + seconds, owner))
        self._tags[owner] = tag + seconds

    def rescale(self, factor: float) -> None:
        """Work is measured in another unit from now on."""
        self._clock *= factor
        self._tags = {owner: tag * factor for owner, tag in self._tags.items()}
        self._line = SortedList((self._tags[owner], owner) for owner in self._waiting)
