"""Start-time fair queueing between owners (Goyal, Vin and Cheng, 1996). Pure.

Every owner has a tag in virtual seconds: the work that it was given, divided by its weight. The waiting owner with the
lowest tag goes next. Two owners that both wait therefore get work in proportion to their weights, to within one item
each. The clock is the tag that was served last. A returning owner starts at the clock: it gets no credit for the time
in which it had nothing waiting, and does not wait for what others did meanwhile.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

Item = TypeVar("Item")
#: Above this number of owners, those that do not wait are forgotten, unless they have had more than their share.
_REMEMBERED_OWNERS = 64
#: Outdated entries of the heap are removed when there are this many more entries than waiting owners.
_CLEAN_UP_ABOVE = 64


class FairShare:
    """The owners' tags. Every operation takes logarithmic time in the number of owners."""

    def __init__(self) -> None:
        self._clock = 0.0
        self._tags: dict[str, float] = {}
        #: Tag and name of the waiting owners, as a heap. Entries may be outdated: `_waiting` decides.
        self._heap: list[tuple[float, str]] = []
        #: The waiting owners, with the tag under which each is in the heap. Its present tag is never below that.
        self._waiting: dict[str, float] = {}
        self._max_remembered = _REMEMBERED_OWNERS

    def __repr__(self) -> str:
        return f"<FairShare {len(self._waiting)} owners waiting, clock {self._clock:.3f}>"

    def tag(self, owner: str) -> float:
        """Return the owner's tag; for one that does not wait, the tag that it would start with now."""
        tag = self._tags.get(owner, self._clock)
        return tag if owner in self._waiting else max(tag, self._clock)

    def first(self) -> str | None:
        """Return the owner to serve next; None where none waits."""
        heap, waiting = self._heap, self._waiting
        while heap:
            tag, owner = heap[0]
            if waiting.get(owner) != tag:
                heapq.heappop(heap)
                continue
            charged = self._tags[owner]
            if charged == tag:
                return owner
            waiting[owner] = charged
            heapq.heapreplace(heap, (charged, owner))
        return None

    def order(self, waiting: Mapping[str, Iterable[tuple[Item, float]]]) -> Iterator[Item]:
        """Yield each owner's items, given with their cost in virtual seconds, in the order of service."""
        turns = [(self.tag(owner), owner, iter(items)) for owner, items in waiting.items()]
        heapq.heapify(turns)
        while turns:
            tag, owner, items = heapq.heappop(turns)
            following = next(items, None)
            if following is not None:
                yield following[0]
                heapq.heappush(turns, (tag + following[1], owner, items))

    def join(self, owner: str) -> None:
        """Mark the owner as waiting. Idempotent."""
        if owner not in self._waiting:
            self._tags[owner] = tag = max(self._tags.get(owner, self._clock), self._clock)
            self._push(owner, tag)

    def leave(self, owner: str) -> None:
        """Mark the owner as not waiting. Idempotent."""
        if owner in self._waiting:
            del self._waiting[owner]
            if len(self._tags) > self._max_remembered:
                self._forget_others()

    def charge(self, owner: str, work_s: float, weight: float = 1.0, *, takes_turn: bool = False) -> None:
        """Add work to the owner's tag; negative work is a refund. Where it `takes_turn`, the clock advances to it."""
        tag, waits = self._tags.get(owner, self._clock), owner in self._waiting
        if not waits:
            tag = max(tag, self._clock)
        if takes_turn and tag > self._clock:
            self._clock = tag
        self._tags[owner] = charged = tag + work_s / weight
        if waits:
            if charged < tag:
                self._push(owner, charged)
        elif len(self._tags) > self._max_remembered:
            self._forget_others()

    def rescale(self, factor: float) -> None:
        """Multiply all tags: the unit of work has changed."""
        self._clock *= factor
        self._tags = {owner: tag * factor for owner, tag in self._tags.items()}
        self._rebuild()

    def _forget_others(self) -> None:
        """Bound the number of owners that do not wait. Those that have had more than their share are not forgotten."""
        self._tags = {name: tag for name, tag in self._tags.items() if name in self._waiting or tag > self._clock}
        self._max_remembered = max(_REMEMBERED_OWNERS, 2 * len(self._tags))

    def _push(self, owner: str, tag: float) -> None:
        self._waiting[owner] = tag
        heapq.heappush(self._heap, (tag, owner))
        if len(self._heap) > 2 * len(self._waiting) + _CLEAN_UP_ABOVE:
            self._rebuild()

    def _rebuild(self) -> None:
        self._waiting = {owner: self._tags[owner] for owner in self._waiting}
        self._heap = [(tag, owner) for owner, tag in self._waiting.items()]
        heapq.heapify(self._heap)
