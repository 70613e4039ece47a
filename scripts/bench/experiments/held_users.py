"""How many users a server holds: the most of whom 95 of 100 requests are answered in time, without an error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

#: The search ends when the failed number is at most this much larger than the held one.
_RESOLUTION = 1.08
#: No machine that runs these experiments holds more.
_MAX_USERS = 4096

Level = dict[str, Any]
Measure = Callable[[int], Awaitable[Level]]


class HeldUsers(NamedTuple):
    """The result of a search, with every level that was measured, by users."""

    held: int
    levels: list[Level]


def is_held(level: Level, bound_s: float) -> bool:
    """Return whether all users of a level were served: p95 within the bound, no error, and any answer."""
    return bool(level["answered"] and not level["errors"] and level["p95_s"] <= bound_s)


async def find_held_users(measure: Measure, bound_s: float, first: int) -> HeldUsers:
    """Search from `first` users, by doubling or halving and then by bisection. 0 if not even one user is held."""
    levels: dict[int, Level] = {}

    async def holds(users: int) -> bool:
        levels[users] = await measure(users) | {"users": users}
        levels[users]["held"] = is_held(levels[users], bound_s)
        return bool(levels[users]["held"])

    low, high = 0, first
    while await holds(high):
        low = high
        if high >= _MAX_USERS:
            break
        high *= 2
    while low == 0 and high > 1:
        if await holds(high // 2):
            low = high // 2
        else:
            high //= 2
    while low and high > low + 1 and high / low > _RESOLUTION:
        middle = (low + high) // 2
        if await holds(middle):
            low = middle
        else:
            high = middle
    return HeldUsers(low, [levels[users] for users in sorted(levels)])
