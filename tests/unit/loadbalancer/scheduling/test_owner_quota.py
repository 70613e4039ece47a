"""Sharing a total between owners: what is promised to each, over random histories."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadbalancer.scheduling.owner_quota import OwnerQuota, fair_level, owner_room

OWNERS = st.sampled_from(["a", "b", "c", "d", "e"])
#: An owner takes (positive) or gives back (negative).
CHANGES = st.lists(st.tuples(OWNERS, st.integers(-30, 60)), max_size=60)


@given(st.integers(1, 100), CHANGES)
def test_quota_keeps_its_promises_in_any_history(total: int, changes: list[tuple[str, int]]) -> None:
    quota = OwnerQuota(total)
    for owner, change in changes:
        if change < 0:
            quota.remove(owner, min(-change, quota.held(owner)))
            continue
        used, own, owners = quota.used, quota.held(owner), quota.owners(owner)
        room = quota.room(owner)
        if used <= total:
            assert room >= total // owners - own, "below its part it is never refused because of others"
        if not own and total - used // 2 > 0 and total >= owners and used < 2 * total:
            assert room >= 1, "a newcomer finds room"
        assert room >= total - used, "free room is for everyone"
        quota.add(owner, min(change, room))
        assert quota.used <= 2 * total
        if quota.used > total and change and room:
            assert quota.held(owner) <= max(total // owners, own + max(total - used, 0))


@given(st.none() | st.integers(1, 40), CHANGES)
@example(None, [("a", 30), ("b", 40), ("a", -10), ("a", -20), ("b", -50), ("c", 0)])
@example(20, [("a", 15), ("a", 5), ("b", 20), ("c", 20), ("a", -20)])
def test_quota_counts_what_each_holds(limit: int | None, changes: list[tuple[str, int]]) -> None:
    quota, held = OwnerQuota(50, limit), Counter[str]()
    for owner, change in changes:
        amount = abs(change)
        if change < 0:  # more than it holds is no less than all
            quota.remove(owner, amount)
            held[owner] -= min(amount, held[owner])
        else:
            own, used, others = held[owner], held.total(), sum(map(bool, held.values())) - bool(held[owner])
            room = owner_room(50, used=used, own=own, owners=others + 1)
            if limit is not None:
                room = max(min(room, limit - own), 0)
            assert quota.room(owner) == room
            for each in (amount, room, room + 1):
                assert quota.fits(owner, each) == (each <= room or not used)
            quota.add(owner, amount)
            held[owner] += amount
        assert (quota.used, quota.held(owner)) == (held.total(), held[owner])
        assert quota.owners("new") == sum(map(bool, held.values())) + 1


@given(st.integers(1, 50), st.integers(1, 20), OWNERS)
def test_quota_bounds_one_owner_by_its_limit(total: int, limit: int, owner: str) -> None:
    quota = OwnerQuota(total, limit)
    while quota.room(owner):
        quota.add(owner, 1)
    assert quota.held(owner) == min(total, limit)


@given(st.lists(st.integers(0, 1000), max_size=8), st.integers(0, 3000))
def test_fair_level_is_the_highest_that_fits(holdings: list[int], total: int) -> None:
    level = fair_level(holdings, total)
    assert sum(min(each, level) for each in holdings) <= total
    if sum(holdings) > total:
        assert sum(min(each, level + 1) for each in holdings) > total
    else:
        assert all(each <= level for each in holdings), "nobody is cut where all fits"


@pytest.mark.parametrize(
    ("used", "own", "owners", "room"),
    [
        (0, 0, 1, 50),
        (50, 50, 1, 0),
        (50, 0, 2, 25),
        (50, 50, 2, 0),
        (75, 25, 2, 0),
        (75, 0, 3, 13),
        (75, 5, 3, 10),
        (100, 0, 4, 0),
    ],
)
def test_room_of_one_owner(used: int, own: int, owners: int, room: int) -> None:
    assert owner_room(50, used=used, own=own, owners=owners) == room


def test_quota_takes_what_exceeds_the_total_only_alone() -> None:
    quota = OwnerQuota(10)
    assert quota.fits("a", 100)
    quota.add("a", 100)
    assert not quota.fits("a", 1)
    assert not quota.fits("b", 1)
    assert quota.describe("a") == "'a' holds 100 of 10"
    assert quota.describe("b") == "'b' holds 0 of 10, shared with 1 other key"
    quota.add("b", 1)
    assert quota.describe("c") == "'c' holds 0 of 10, shared with 2 other keys"
