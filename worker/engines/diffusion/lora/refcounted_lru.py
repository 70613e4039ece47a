"""A reference-counted LRU set: pure bookkeeping; the caller loads and evicts."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Item = TypeVar("Item")


class RefCountedLru(Generic[Item]):
    """Items ordered by last use, with a reference count each.

    Items in use are never evicted, so their number may exceed the capacity. Rejecting a request instead would make its
    result depend on other requests.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        #: Reference counts, least recently acquired first.
        self._users: OrderedDict[Item, int] = OrderedDict()
        self._stale: set[Item] = set()

    def __repr__(self) -> str:
        used = sum(users > 0 for users in self._users.values())
        return f"<RefCountedLru {used} of {len(self._users)} in use, capacity {self._capacity}>"

    def __len__(self) -> int:
        return len(self._users)

    def __contains__(self, item: object) -> bool:
        return item in self._users

    def add(self, item: Item) -> None:
        assert item not in self._users, f"{item} is already present"
        self._users[item] = 0

    def acquire(self, item: Item) -> None:
        self._users[item] += 1
        self._users.move_to_end(item)

    def release(self, item: Item) -> None:
        assert self._users[item] > 0, f"{item} is not in use"
        self._users[item] -= 1

    def mark_stale(self, item: Item) -> None:
        """Evict this item as soon as it is unused, whatever the capacity."""
        self._stale.add(item)

    def evictable(self, incoming: int = 0) -> list[Item]:
        """Return the items to evict before `incoming` are added: stale ones, then the least recently used."""
        unused = [item for item, users in self._users.items() if users == 0]
        evicted = [item for item in unused if item in self._stale]
        others = [item for item in unused if item not in self._stale]
        excess = len(self._users) - len(evicted) + incoming - self._capacity
        return evicted + others[: max(excess, 0)]

    def remove(self, item: Item) -> None:
        assert self._users[item] == 0, f"{item} is in use"
        del self._users[item]
        self._stale.discard(item)
