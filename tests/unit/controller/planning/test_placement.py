"""Placement on devices: what fits where, now and after draining workers have exited."""

from __future__ import annotations

import pytest

from controller.planning.placement import DeviceSlots, PlacementRequest
from controller.types import Device

GIB = 2**30


def slots(*memory: int | None, tight: bool = False, faulty: tuple[int, ...] = ()) -> DeviceSlots:
    devices = [
        Device(f"cuda:{n}", None if size is None else size * GIB, "broken" if n in faulty else "")
        for n, size in enumerate(memory)
    ]
    return DeviceSlots({device.name: device for device in devices}, tight=tight)


def request(
    model: str, need: float | None, places: tuple[int, ...] = (0, 1), *, share: bool = False
) -> PlacementRequest:
    counts = {f"cuda:{n}": places.count(n) for n in places}
    return PlacementRequest(model, None if need is None else int(need * GIB), counts, share)


@pytest.mark.parametrize(
    ("memory", "wants", "taken"),
    [
        # Empty devices come first, then shared ones.
        ((24, 24, 24), [("a", 10), ("b", 10), ("c", 10)], ["cuda:0", "cuda:1", "cuda:2"]),
        ((24, 24), [("a", 10), ("b", 10), ("c", 10)], ["cuda:0", "cuda:1", "cuda:0"]),
        # Among empty devices, the one with the least memory left over.
        ((80, 24, 40), [("a", 10), ("b", 30), ("c", 60)], ["cuda:1", "cuda:2", "cuda:0"]),
        # The same among devices with equally many workers.
        ((24, 16), [("a", 4), ("b", 4), ("c", 10)], ["cuda:1", "cuda:0", "cuda:1"]),
        # One worker of a model per device, even with more room.
        ((24, 24), [("a", 4), ("a", 4), ("a", 4)], ["cuda:0", "cuda:1", None]),
        # The limit is exact to the byte.
        ((24,), [("a", 12), ("b", 12), ("c", 1 / GIB)], ["cuda:0", "cuda:0", None]),
        # A worker of unknown need gets a device of its own.
        ((24, 24), [("a", None), ("b", 1), ("c", None), ("d", 1)], ["cuda:0", "cuda:1", None, "cuda:1"]),
        ((24,), [("a", 25)], [None]),
        # Without counted memory, each slot takes one worker of any model.
        ((None, None), [("a", 10), ("b", 10), ("c", 10)], ["cuda:0", "cuda:1", None]),
    ],
)
def test_workers_are_placed_by_room(
    memory: tuple[int | None, ...], wants: list[tuple[str, float | None]], taken: list[str | None]
) -> None:
    there = slots(*memory)
    places = tuple(range(len(memory)))
    assert [there.take(request(model, need, places)) for model, need in wants] == taken


def test_workers_of_a_model_spread_before_they_share() -> None:
    there = slots(24, 24)
    small = request("a", 8, share=True)
    assert [there.take(small) for _ in range(7)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0", "cuda:1", None]


def test_device_listed_twice_takes_two_workers_of_a_model() -> None:
    there = slots(24)
    assert [there.take(request("a", 8, (0, 0))) for _ in range(3)] == ["cuda:0", "cuda:0", None]


def test_tight_placement_leaves_devices_empty() -> None:
    there = slots(24, 24, tight=True)
    assert [there.take(request(m, need)) for m, need in [("a", 10), ("b", 10), ("c", 24)]] == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
    ]


def test_faulty_device_takes_no_worker() -> None:
    there = slots(24, 24, faulty=(0,))
    assert [there.take(request(model, 10)) for model in "abc"] == ["cuda:1", "cuda:1", None]


def test_worker_takes_all_of_an_exclusive_device() -> None:
    there = DeviceSlots({"cuda:0": Device("cuda:0", 24 * GIB, exclusive=True), "cuda:1": Device("cuda:1", 24 * GIB)})
    assert [there.take(request(model, 4)) for model in "abc"] == ["cuda:0", "cuda:1", "cuda:1"]
    assert there.take(request("d", 25)) is None


def test_draining_worker_holds_room_until_its_exit() -> None:
    there = slots(24)
    there.hold("cuda:0", request("a", 20, (0,)))
    there.release_later("cuda:0", request("a", 20, (0,)), "a-1")
    big, small = request("b", 16, (0,)), request("c", 6, (0,))
    assert there.take(big) is None, "both would not fit"
    assert there.reserve_pending(big) == "cuda:0"
    assert there.take(request("d", 4, (0,))) == "cuda:0", "beside what leaves and beside what is to come"
    assert there.take(small) is None, "it would fit once the other has left, but that room is promised"
    assert there.reserve_pending(small) is None
    assert there.max_free(small) == (0, "cuda:0")


def test_draining_worker_counts_among_those_of_its_model() -> None:
    there, own = slots(24), request("a", 4, (0,))
    there.hold("cuda:0", own)
    there.release_later("cuda:0", own, "a-1")
    assert there.take(own) is None, "one of its like is there until its exit"
    assert there.reserve_pending(own) == "cuda:0"


def test_worker_of_unknown_need_takes_what_is_free() -> None:
    there, unknown = slots(24, 16), request("a", None)
    for device, need in (("cuda:0", 14), ("cuda:1", 4)):
        there.hold(device, request("b", need))
    assert there.take(unknown) is None
    assert there.take_partial(unknown) == "cuda:1", "12 GiB are free there"
    full = slots(24)
    full.hold("cuda:0", request("b", 24, (0,)))
    assert full.take_partial(request("a", None, (0,))) is None
    assert slots(24).take_partial(request("a", 4, (0,))) is None, "its need is known"


def test_reserved_room_is_not_taken_by_a_smaller_worker() -> None:
    there = slots(24)
    there.hold("cuda:0", request("a", 14, (0,)))
    there.hold("cuda:0", request("b", 4, (0,)))
    there.release_later("cuda:0", request("b", 4, (0,)), "b-1")
    assert there.reserve_pending(request("c", 9, (0,))) == "cuda:0"
    assert there.take(request("d", 5, (0,))) is None, "it is free now, but kept"
    assert there.take(request("e", 1, (0,))) == "cuda:0"


def test_will_fit_counts_replaced_workers() -> None:
    there = slots(24)
    for model in "ab":
        there.hold("cuda:0", request(model, 8))
    new = request("c", 16)
    assert not there.will_fit("cuda:0", new)
    assert there.will_fit("cuda:0", new, [request("a", 8)])
    assert not there.will_fit("cuda:0", request("c", 24), [request("a", 8)])
    assert not there.will_fit("cuda:0", request("a", 1)), "one of its like is there"
