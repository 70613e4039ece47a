"""Shares a total between owners, so that none can take what belongs to the others. Pure.

Two rules, for two kinds of totals:

- `owner_room`, where nothing can be taken back (accepted tasks, jobs, source images, deliveries). Free room is for
  everyone. When the total is used up, an owner below its equal part is still accepted, from a reserve of the same size.
- `fair_level`, where the oldest can be deleted (results, stored answers): max-min fairness.
"""

from __future__ import annotations

from collections.abc import Iterable


def owner_room(total: int, *, used: int, own: int, owners: int) -> int:
    """Return how much more an owner may take of the total.

    `used` is what all owners hold and `own` the part of this one. `owners` is the number of owners that hold anything,
    this one included. Never more than twice the total is given out. While at most the total is, an owner gets its
    equal part in any case. Later it gets at most half of the remaining reserve, so that a newcomer finds room.
    """
    below_part = total // owners - own
    reserve = (2 * total - used - own + 1) // 2
    return max(total - used, min(below_part, reserve, 2 * total - used), 0)


def fair_level(holdings: Iterable[int], total: int) -> int:
    """Return the highest level such that all holdings, each cut to it, fit into the total."""
    remaining, level = sorted(holdings), 0
    rest = total
    for index, holding in enumerate(remaining):
        level = max(rest, 0) // (len(remaining) - index)
        if holding > level:
            return level
        rest -= holding
    return max(remaining[-1] if remaining else 0, level)


class OwnerQuota:
    """What each owner holds of a shared total."""

    def __init__(self, total: int, limit: int | None = None) -> None:
        """`limit` bounds one owner even where there is room."""
        self.total = total
        self._limit = limit
        self._held: dict[str, int] = {}
        #: What all owners hold.
        self.used = 0

    def __repr__(self) -> str:
        return f"<OwnerQuota {self.used} of {self.total}, {len(self._held)} owners>"

    def held(self, owner: str) -> int:
        return self._held.get(owner, 0)

    def owners(self, owner: str) -> int:
        """Return the number of owners that hold anything, this one included."""
        return len(self._held) + (owner not in self._held)

    def room(self, owner: str) -> int:
        """Return how much more the owner may take."""
        own = self.held(owner)
        room = owner_room(self.total, used=self.used, own=own, owners=self.owners(owner))
        return room if self._limit is None else max(min(room, self._limit - own), 0)

    def fits(self, owner: str, amount: int) -> bool:
        """Return whether the owner may take the amount. One that exceeds the total fits only where nothing is held."""
        if self._limit is None and self.used + amount <= self.total:
            return True
        return amount <= self.room(owner) or not self.used

    def add(self, owner: str, amount: int) -> None:
        if amount:
            self._held[owner] = self._held.get(owner, 0) + amount
            self.used += amount

    def remove(self, owner: str, amount: int) -> None:
        own = self._held.get(owner, 0)
        self.used -= min(amount, own)
        if own > amount:
            self._held[owner] = own - amount
        else:
            self._held.pop(owner, None)

    def describe(self, owner: str) -> str:
        """Return a text on whose part is full, for an error message."""
        others = self.owners(owner) - 1
        shared = f", shared with {others} other key{'s' if others > 1 else ''}" if others else ""
        return f"'{owner}' holds {self.held(owner)} of {self.total}{shared}"
