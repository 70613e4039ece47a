"""Turns between the owners of webhooks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.jobs.delivery_queue import MAX_PER_HOST, DeliveryQueue
from loadbalancer.storage.records import PendingDelivery

DUE = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["x", "y", "z"])), max_size=60)


def deliveries(due: list[tuple[str, str]]) -> list[PendingDelivery]:
    return [PendingDelivery(f"job{number}", 0, owner, host) for number, (owner, host) in enumerate(due)]


def start_all(queue: DeliveryQueue) -> list[PendingDelivery]:
    return list(iter(queue.start_next, None))


@given(DUE, st.integers(1, 12))
def test_all_are_delivered_once_within_the_limits(due: list[tuple[str, str]], limit: int) -> None:
    queue, running, done = DeliveryQueue(limit), list[PendingDelivery](), list[PendingDelivery]()
    pending = deliveries(due)
    while len(done) < len(pending):
        queue.replace_pending([each for each in pending if each not in done])
        running += start_all(queue)
        assert running, "something can always start"
        assert len(queue) == len(running) <= 2 * limit
        of_host = [(each.owner, each.host) for each in running]
        assert all(of_host.count(each) <= MAX_PER_HOST for each in of_host)
        finished = running.pop(0)
        queue.finish(finished)
        done.append(finished)
    assert sorted(done) == sorted(pending)
    assert repr(queue) == "<DeliveryQueue 0 under way to 0 hosts, 0 due>"


def test_an_owner_finds_room_beside_the_slow_receivers_of_others() -> None:
    queue = DeliveryQueue(8)
    slow = [PendingDelivery(f"slow{number}", 0, "a", f"host{number}") for number in range(64)]
    queue.replace_pending(slow)
    assert len(start_all(queue)) == 8
    queue.replace_pending([*slow, PendingDelivery("good", 0, "b", "host")])
    assert [each.job for each in start_all(queue)] == ["good"]


def test_one_slow_host_leaves_room_for_the_others_of_its_owner() -> None:
    queue = DeliveryQueue(8)
    slow = [PendingDelivery(f"slow{number}", 0, "a", "host") for number in range(64)]
    queue.replace_pending([*slow, PendingDelivery("good", 0, "a", "other")])
    assert [each.job for each in start_all(queue)].count("good") == 1


def test_owners_take_turns_and_each_begins_with_what_is_due_first() -> None:
    queue = DeliveryQueue(6)
    places = [("a", "x")] * 6 + [("a", "y"), ("b", "x"), ("b", "x")]
    queue.replace_pending(deliveries(places))
    assert [each.job for each in start_all(queue)] == ["job0", "job7", "job1", "job8", "job2", "job3"]
    assert repr(queue) == "<DeliveryQueue 6 under way to 2 hosts, 3 due>"
