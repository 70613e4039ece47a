"""Full searches for garbage in cycles: rare, and never started by Python's own rule."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from loadbalancer.garbage_collection import GarbageCollection, is_due


@pytest.mark.parametrize(
    ("since_s", "took_s", "searches", "expected"),
    [
        (10.0, 0.0, 0, True),
        (10.0, 0.01, 0, True),
        (10.0, 0.2, 0, False),
        (199.0, 0.2, 0, False),
        (200.0, 0.2, 0, True),
        (10.0, 0.0, 50, False),
        (200.0, 0.0, 50, True),
    ],
)
def test_full_searches_take_a_thousandth_of_the_time(
    since_s: float, took_s: float, searches: int, expected: bool
) -> None:
    assert is_due(since_s, took_s, searches) == expected


@pytest.fixture
def settings_restored() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.usefixtures("settings_restored")
def test_growth_starts_no_full_search() -> None:
    def searches(generation: int) -> int:
        return int(gc.get_stats()[generation]["collections"])

    async def grow() -> None:
        collection = GarbageCollection()
        collection.start()
        try:
            second, full = searches(1), searches(2)
            kept = [[number] for number in range(400_000)]
            assert searches(1) >= second + 10, "by Python's own rule, ten of them are followed by a full one"
            assert (searches(2), len(kept)) == (full, 400_000)
        finally:
            collection.stop()

    asyncio.run(grow())
