"""Which source image is decoded next: owners take turns by the time that their images take. Pure."""

from __future__ import annotations

import itertools

from loadbalancer.scheduling.fair_share import FairShare

#: Charged at the start of a decode, and corrected at its end.
_EXPECTED_S = 0.1


class DecodeQueueFull(Exception):
    """Too many images of the owner wait. `waiting` is the number of all owners' images."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} images wait")
        self.waiting = waiting


class DecodeQueue:
    """Waiting and running decodes, by ticket. Add, then call `next` until it returns None, also after each `finish`."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        """One owner may have `max_waiting` images waiting, and all owners together twice as many.

        One owner may have all but one of `max_running` images running: the last one is for the others.
        """
        self._max_running = max_running
        self._max_running_of_owner = max(max_running - 1, 1)
        self._max_waiting = max_waiting
        self._tickets = itertools.count()
        self._shares = FairShare()
        #: The waiting tickets of each owner, the oldest first.
        self._waiting: dict[str, dict[int, None]] = {}
        self._running: dict[int, str] = {}
        self._owners: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<DecodeQueue {self.running} running, {self.waiting} waiting>"

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._owners) - len(self._running)

    def room(self, owner: str) -> int:
        """Return how many more images of the owner may wait.

        A full queue still accepts images of an owner below its equal part.
        """
        own = len(self._waiting.get(owner, ()))
        part = self._max_waiting // (len(self._waiting) + (own == 0)) - own
        return max(self._max_waiting - self.waiting, min(part, 2 * self._max_waiting - self.waiting), 0)

    def add(self, owner: str) -> int:
        """Return the ticket of a new image. Raises `DecodeQueueFull`."""
        if self.room(owner) < 1:
            raise DecodeQueueFull(self.waiting)
        ticket = next(self._tickets)
        self._owners[ticket] = owner
        self._waiting.setdefault(owner, {})[ticket] = None
        self._update_turn(owner)
        return ticket

    def next(self) -> int | None:
        """Return the ticket of the image to decode now; None while none may be."""
        owner = self._shares.first()
        if owner is None or len(self._running) >= self._max_running:
            return None
        ticket = next(iter(self._waiting[owner]))
        self._shares.charge(owner, _EXPECTED_S, takes_turn=True)
        self._running[ticket] = owner
        self._remove_waiting(ticket, owner)
        return ticket

    def finish(self, ticket: int, seconds: float = 0.0) -> None:
        """Remove the image: its decode has ended after this time, or it is not needed any more."""
        owner = self._owners.pop(ticket)
        if self._running.pop(ticket, None) is None:
            self._remove_waiting(ticket, owner)
        else:
            self._shares.charge(owner, seconds - _EXPECTED_S)
            self._update_turn(owner)

    def _remove_waiting(self, ticket: int, owner: str) -> None:
        own = self._waiting[owner]
        del own[ticket]
        if not own:
            del self._waiting[owner]
        self._update_turn(owner)

    def _update_turn(self, owner: str) -> None:
        """Let the owner wait for its turn while it has something to decode and may start it."""
        running = sum(other == owner for other in self._running.values())
        if owner in self._waiting and running < self._max_running_of_owner:
            self._shares.join(owner)
        else:
            self._shares.leave(owner)
