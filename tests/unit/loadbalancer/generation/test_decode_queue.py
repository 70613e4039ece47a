"""The queue of decodes: turns between owners, bounds, and nothing lost in random histories."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loadbalancer.generation.decoding.decode_queue import DecodeQueue, DecodeQueueFull

MAX_RUNNING, MAX_WAITING = 3, 6
OWNERS = ("alice", "bob", "carol", "dan")


def drain(queue: DecodeQueue, owners: dict[int, str], seconds: dict[str, float]) -> list[str]:
    """Decode everything, one at a time; an image of the owner takes this long. Return the owners in order."""
    served = []
    while (ticket := queue.next()) is not None:
        served.append(owners[ticket])
        queue.finish(ticket, seconds[owners[ticket]])
    return served


def test_owners_take_turns() -> None:
    queue = DecodeQueue(1, 100)
    owners = {queue.add(owner): owner for owner in ["alice"] * 5 + ["bob"] * 2}
    assert drain(queue, owners, {"alice": 0.1, "bob": 0.1}) == ["alice", "bob"] * 2 + ["alice"] * 3


def test_turns_are_by_time_and_not_by_number() -> None:
    queue = DecodeQueue(1, 100)
    owners = {queue.add(owner): owner for owner in ["alice"] * 5 + ["bob"] * 50}
    served = drain(queue, owners, {"alice": 10.0, "bob": 0.1})
    assert served[:2] == ["alice", "bob"]
    assert "alice" not in served[2:50], "bob's fifty images take half as long as one of alice's"


def test_new_owner_goes_before_the_waiting_of_a_flood() -> None:
    queue = DecodeQueue(1, 100)
    owners = {queue.add("alice"): "alice" for _ in range(100)}
    running = queue.next()
    assert running is not None
    owners[queue.add("bob")] = "bob"
    assert queue.next() is None
    queue.finish(running, 10.0)
    ticket = queue.next()
    assert ticket is not None
    assert owners[ticket] == "bob"


def test_flood_of_one_owner_leaves_a_decoder_for_others() -> None:
    queue = DecodeQueue(3, 100)
    owners = {queue.add("alice"): "alice" for _ in range(100)}
    running = [queue.next(), queue.next()]
    assert queue.next() is None
    owners[queue.add("bob")] = "bob"
    ticket = queue.next()
    assert ticket is not None
    assert owners[ticket] == "bob"
    assert queue.next() is None
    assert running[0] is not None
    queue.finish(running[0], 10.0)
    following = queue.next()
    assert following is not None
    assert owners[following] == "alice"


def test_image_that_is_not_needed_leaves_the_queue() -> None:
    queue = DecodeQueue(1, 100)
    first, second, third = (queue.add("alice") for _ in range(3))
    queue.finish(first)
    queue.finish(second)
    assert queue.next() == third


def test_full_queue_has_room_for_other_owners() -> None:
    queue = DecodeQueue(1, 4)
    for _ in range(4):
        queue.add("alice")
    with pytest.raises(DecodeQueueFull) as full:
        queue.add("alice")
    assert full.value.waiting == 4
    assert (queue.room("alice"), queue.room("bob")) == (0, 2)


def test_many_owners_wait_with_twice_the_limit_at_most() -> None:
    queue = DecodeQueue(1, 60)
    for number in range(60):
        while queue.room(f"owner-{number}"):
            queue.add(f"owner-{number}")
    assert queue.waiting == 120
    with pytest.raises(DecodeQueueFull, match=r"^120 images wait$"):
        queue.add("another")


class DecodeQueueMachine(RuleBasedStateMachine):
    """Adds, starts, ends and abandons images in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = DecodeQueue(MAX_RUNNING, MAX_WAITING)
        self.waiting: dict[int, str] = {}
        self.running: dict[int, str] = {}

    @rule(owner=st.sampled_from(OWNERS))
    def add(self, owner: str) -> None:
        own = sum(other == owner for other in self.waiting.values())
        owners = len({*self.waiting.values(), owner})
        try:
            ticket = self.queue.add(owner)
        except DecodeQueueFull:
            assert len(self.waiting) >= MAX_WAITING
            assert own >= MAX_WAITING // owners or len(self.waiting) == 2 * MAX_WAITING
            return
        assert ticket not in self.waiting | self.running
        self.waiting[ticket] = owner

    @rule()
    def start(self) -> None:
        ticket = self.queue.next()
        if ticket is None:
            capped = {owner for owner, count in Counter(self.running.values()).items() if count == MAX_RUNNING - 1}
            assert len(self.running) == MAX_RUNNING or set(self.waiting.values()) <= capped
            return
        owner = self.waiting.pop(ticket)
        assert not any(other < ticket for other, its_owner in self.waiting.items() if its_owner == owner)
        self.running[ticket] = owner

    @precondition(lambda self: self.running)
    @rule(data=st.data(), seconds=st.floats(0, 30))
    def end(self, data: st.DataObject, seconds: float) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.running)))
        self.queue.finish(ticket, seconds)
        del self.running[ticket]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        self.queue.finish(ticket)
        del self.waiting[ticket]

    @invariant()
    def counts_are_right(self) -> None:
        assert (self.queue.waiting, self.queue.running) == (len(self.waiting), len(self.running))
        assert self.queue.running <= MAX_RUNNING
        assert all(count < MAX_RUNNING for count in Counter(self.running.values()).values())
        assert self.queue.waiting <= 2 * MAX_WAITING

    @invariant()
    def absent_owner_has_room(self) -> None:
        """Unless four owners share the queue already."""
        absent = set(OWNERS) - set(self.waiting.values())
        assert all(self.queue.room(owner) > 0 for owner in absent)

    def teardown(self) -> None:
        """Everything that waits is served in the end."""
        for ticket in self.running:
            self.queue.finish(ticket, 1.0)
        while (following := self.queue.next()) is not None:
            del self.waiting[following]
            self.queue.finish(following, 1.0)
        assert not self.waiting


TestDecodeQueue = DecodeQueueMachine.TestCase
