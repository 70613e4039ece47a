"""The reference-counted LRU in any order of events."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker.engines.diffusion.lora.refcounted_lru import RefCountedLru

ITEMS = st.sampled_from("abcdef")


def lru_with(*used: str, capacity: int) -> RefCountedLru[str]:
    """Return a cache in which these items were acquired and released in order."""
    lru: RefCountedLru[str] = RefCountedLru(capacity)
    for item in used:
        if item not in lru:
            lru.add(item)
        lru.acquire(item)
        lru.release(item)
    return lru


def test_lru_item_evicted_first() -> None:
    assert lru_with("a", "b", "c", "a", capacity=2).evictable() == ["b"]
    assert lru_with("a", "b", "c", "a", capacity=2).evictable(incoming=1) == ["b", "c"]


def test_items_in_use_never_evicted() -> None:
    lru = lru_with("a", "b", capacity=1)
    lru.acquire("a")
    lru.acquire("b")
    assert lru.evictable(incoming=1) == []
    assert repr(lru) == "<RefCountedLru 2 of 2 in use, capacity 1>"
    lru.release("b")
    assert lru.evictable() == ["b"]


def test_stale_item_evicted_below_capacity() -> None:
    lru = lru_with("a", "b", capacity=9)
    lru.acquire("b")
    lru.mark_stale("b")
    assert lru.evictable() == []
    lru.release("b")
    assert lru.evictable() == ["b"]


class LruStateMachine(RuleBasedStateMachine):
    """Any order of acquire and release, with evictions at any time."""

    @initialize(capacity=st.integers(1, 3))
    def start(self, capacity: int) -> None:
        self.capacity = capacity
        self.lru: RefCountedLru[str] = RefCountedLru(capacity)
        self.users: dict[str, int] = {}
        self.stale: set[str] = set()
        #: Least recently acquired first.
        self.order: list[str] = []

    @rule(item=ITEMS)
    def acquire(self, item: str) -> None:
        if item not in self.users:
            self.trim(incoming=1)
            self.lru.add(item)
            self.users[item] = 0
        self.lru.acquire(item)
        self.users[item] += 1
        self.order = [other for other in self.order if other != item] + [item]

    @precondition(lambda self: any(self.users.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(item for item, users in self.users.items() if users)))
        self.lru.release(item)
        self.users[item] -= 1

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def mark_stale(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.users)))
        self.lru.mark_stale(item)
        self.stale.add(item)

    @rule(incoming=st.integers(0, 2))
    def trim(self, incoming: int) -> None:
        evicted = self.lru.evictable(incoming)
        unused = {item for item, users in self.users.items() if not users}
        assert set(evicted) <= unused, "items in use must not be evicted"
        assert unused & self.stale <= set(evicted), "unused stale items must be evicted"
        others = [item for item in evicted if item not in self.stale]
        left = len(self.users) - len(evicted)
        assert not others or left + incoming >= self.capacity or left + incoming + len(others) > self.capacity
        assert left + incoming <= self.capacity or unused <= set(evicted), (
            "unused items must be evicted until there is room"
        )
        assert not others or left + len(others) + incoming > self.capacity, "no item may be evicted needlessly"
        stay = unused - set(evicted)
        assert all(
            self.order.index(evicted_item) < self.order.index(remaining_item)
            for evicted_item in others
            for remaining_item in stay
        )
        for item in evicted:
            self.lru.remove(item)
            del self.users[item]
            self.stale.discard(item)
            self.order.remove(item)

    @invariant()
    def holds_what_it_was_given(self) -> None:
        assert len(self.lru) == len(self.users)
        assert all(item in self.lru for item in self.users)


TestLruStateMachine = LruStateMachine.TestCase
TestLruStateMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
