"""Which adapters stay in memory: in any order of events, none in use goes, and no more than needed do."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker.engines.diffusion.lora.refcounted_lru import Shelf

ITEMS = st.sampled_from("abcdef")


def shelf_of(*taken: str, room: int) -> Shelf[str]:
    """Items that were taken in this order and given back."""
    shelf: Shelf[str] = Shelf(room)
    for item in taken:
        if item not in shelf:
            shelf.put(item)
        shelf.take(item)
        shelf.give_back(item)
    return shelf


def test_the_least_recently_taken_goes_first() -> None:
    assert shelf_of("a", "b", "c", "a", room=2).surplus() == ["b"]
    assert shelf_of("a", "b", "c", "a", room=2).surplus(coming=1) == ["b", "c"]


def test_what_is_in_use_stays_however_little_room_there_is() -> None:
    shelf = shelf_of("a", "b", room=1)
    shelf.take("a")
    shelf.take("b")
    assert shelf.surplus(coming=1) == []
    assert repr(shelf) == "<Shelf 2 of 2 in use, room for 1>"
    shelf.give_back("b")
    assert shelf.surplus() == ["b"]


def test_the_outdated_goes_although_there_is_room() -> None:
    shelf = shelf_of("a", "b", room=9)
    shelf.take("b")
    shelf.outdate("b")
    assert shelf.surplus() == []
    shelf.give_back("b")
    assert shelf.surplus() == ["b"]


class Histories(RuleBasedStateMachine):
    """Any order of takers and givers, the owner removing what the shelf says whenever it likes."""

    @initialize(room=st.integers(1, 3))
    def start(self, room: int) -> None:
        self.room = room
        self.shelf: Shelf[str] = Shelf(room)
        self.users: dict[str, int] = {}
        self.outdated: set[str] = set()
        #: Least recently taken first.
        self.order: list[str] = []

    @rule(item=ITEMS)
    def take(self, item: str) -> None:
        if item not in self.users:
            self.trim(coming=1)
            self.shelf.put(item)
            self.users[item] = 0
        self.shelf.take(item)
        self.users[item] += 1
        self.order = [other for other in self.order if other != item] + [item]

    @precondition(lambda self: any(self.users.values()))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(item for item, users in self.users.items() if users)))
        self.shelf.give_back(item)
        self.users[item] -= 1

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def outdate(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.users)))
        self.shelf.outdate(item)
        self.outdated.add(item)

    @rule(coming=st.integers(0, 2))
    def trim(self, coming: int) -> None:
        leaving = self.shelf.surplus(coming)
        unused = {item for item, users in self.users.items() if not users}
        assert set(leaving) <= unused, "nobody loses what it uses"
        assert unused & self.outdated <= set(leaving), "nothing waits for those who will never come"
        others = [item for item in leaving if item not in self.outdated]
        left = len(self.users) - len(leaving)
        assert not others or left + coming >= self.room or left + coming + len(others) > self.room
        assert left + coming <= self.room or unused <= set(leaving), "room is made while there is anything to give"
        assert not others or left + len(others) + coming > self.room, "nothing goes without need"
        stay = unused - set(leaving)
        assert all(self.order.index(gone) < self.order.index(kept) for gone in others for kept in stay)
        for item in leaving:
            self.shelf.remove(item)
            del self.users[item]
            self.outdated.discard(item)
            self.order.remove(item)

    @invariant()
    def holds_what_it_was_given(self) -> None:
        assert len(self.shelf) == len(self.users)
        assert all(item in self.shelf for item in self.users)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
