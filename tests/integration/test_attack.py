"""Attacks on a running server keep their bounds: the short profile of `scripts/attack.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripts.attack_lib.measure import attack_single
from scripts.attack_lib.run import ALL
from scripts.attack_lib.target import Target

#: Stalls are longer on a busy machine. The other bounds are the same.
STALL_FACTOR = 10.0
SHORT = [attack for attack in ALL if attack.is_short]
#: Attacks in one test, so that tests are few.
GROUP = 8


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    started = Target(tmp_path_factory.mktemp("attack") / "data", stall_factor=STALL_FACTOR)
    try:
        started.warm_up()
        yield started
    finally:
        started.end()


@pytest.mark.parametrize("first", range(0, len(SHORT), GROUP))
def test_no_bound_is_broken(target: Target, first: int) -> None:
    outcomes = [attack_single(attack, target) for attack in SHORT[first : first + GROUP]]
    assert {outcome.attack.name: outcome.broken for outcome in outcomes if outcome.broken} == {}
