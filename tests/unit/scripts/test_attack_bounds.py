"""What counts as a broken bound of an attack."""

from __future__ import annotations

import pytest

from scripts.attack_lib.attack import CUSTOMER, MIB, STRANGER, Attack, Bounds, Outcome, judge
from scripts.attack_lib.run import ALL


def outcome(bounds: Bounds, *, rss_bytes: int = 0, stall_s: float = 0.0, log_bytes: int = 0) -> Outcome:
    attack = Attack("a", "b", lambda target: "", bounds)
    return Outcome(attack, rss_bytes=rss_bytes, stall_s=stall_s, log_bytes=log_bytes)


@pytest.mark.parametrize(
    ("seen", "factor", "broken"),
    [
        (outcome(STRANGER, rss_bytes=16 * MIB, stall_s=0.3, log_bytes=64 << 10), 1.0, []),
        (outcome(STRANGER, rss_bytes=17 * MIB), 1.0, ["RSS +17 MiB, allowed 16"]),
        (outcome(CUSTOMER, rss_bytes=17 * MIB), 1.0, []),
        (outcome(STRANGER, stall_s=0.4), 1.0, ["/healthz stalled 0.40 s, allowed 0.30"]),
        (outcome(STRANGER, stall_s=0.4), 10.0, []),
        (outcome(CUSTOMER, rss_bytes=65 * MIB, stall_s=6.0), 10.0, ["RSS", "/healthz"]),
        (outcome(STRANGER, log_bytes=70_000), 10.0, ["logs +70000 B, allowed 65536"]),
    ],
)
def test_broken_bounds(seen: Outcome, factor: float, broken: list[str]) -> None:
    found = judge(seen, stall_factor=factor)
    assert len(found) == len(broken)
    assert all(text.startswith(start) for text, start in zip(found, broken, strict=True))


def test_names_of_attacks_are_unique() -> None:
    names = [attack.name for attack in ALL]
    assert len(set(names)) == len(names)
