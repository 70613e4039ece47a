"""Which adapters are in memory, who needs them, and which give way.

Rule: pure bookkeeping. It loads nothing and names what is to go; whoever holds the weights does it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Item = TypeVar("Item")


class RefCountedLru(Generic[Item]):
    """Items by their last use, and how many need each of them now.

    Items in use never give way: while more are needed than there is room for, there are more, and what is too much
    goes as soon as it is not needed. To refuse instead would make an answer depend on who else is being served.
    """

    def __init__(self, capacity: int) -> None:
        """`room` is how many items may stay for the sake of later use."""
        self._capacity = capacity
        #: Users of each item, least recently taken first.
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
        """It is in memory from now on, and nobody uses it yet."""
        assert item not in self._users, f"{item} is there already"
        self._users[item] = 0

    def acquire(self, item: Item) -> None:
        """One more needs it."""
        self._users[item] += 1
        self._users.move_to_end(item)

    def release(self, item: Item) -> None:
        """One fewer needs it."""
        assert self._users[item] > 0, f"nobody has {item}"
        self._users[item] -= 1

    def mark_stale(self, item: Item) -> None:
        """Nobody will ask for it again: it goes when it is not needed, however much room there is."""
        self._stale.add(item)

    def evictable(self, incoming: int = 0) -> list[Item]:
        """What is to leave so that `coming` more find room: the outdated, then the least recently taken."""
        unused = [item for item, users in self._users.items() if users == 0]
        evicted = [item for item in unused if item in self._stale]
        others = [item for item in unused if item not in self._stale]
        excess = len(self._users) - len(evicted) + incoming - self._capacity
        return evicted + others[: max(excess, 0)]

    def remove(self, item: Item) -> None:
        """It is in memory no longer."""
        assert self._users[item] == 0, f"{item} is in use"
        del self._users[item]
        self._stale.discard(item)
