"""What chaos asks and breaks follows from its seed alone, and its accounts leave nothing out."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

import msgspec
import pytest

from configs.settings import Settings
from scripts.chaos_lib.fault_plan import DECK, Ask, asks, troubles
from scripts.chaos_lib.monitor import Reading, Seen
from scripts.chaos_lib.outcomes import CUT_OFF, End, Story, add_up, faults
from scripts.chaos_lib.profiles import OWNERS, PROFILES, Profile
from scripts.chaos_lib.run import ghosts, under_way
from wire.messages import WorkerCounters
from wire.snapshot import ModelStats, Snapshot, WorkerStats

OWNER_NAMES = list(OWNERS)
PLAIN = Ask("ask-0001", 1.0, "bob", "sync", "a seven", 7, 20, "64x64", 1, False, None, None, 1.0, 0)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_the_same_seed_gives_the_same_run_and_another_one_another(profile: Profile) -> None:
    wishes = profile.wishes
    first, again, other = (asks(seed, wishes, OWNER_NAMES, 60.0) for seed in ("7", "7", "8"))
    assert first == again != other
    hurt, hurt_again, hurt_otherwise = (troubles(seed, wishes, 60.0) for seed in ("7", "7", "8"))
    assert hurt == hurt_again != hurt_otherwise


@pytest.mark.parametrize("seed", range(5))
def test_a_run_has_every_kind_of_request_and_of_trouble(seed: int) -> None:
    wishes = PROFILES["sim"].wishes
    wanted = asks(str(seed), wishes, OWNER_NAMES, 150.0)
    assert {ask.way for ask in wanted} == {
        "sync", "predict", "stream", "slow", "hang_up", "hang_up_stream", "job", "follow"
    }  # fmt: skip
    assert {ask.owner for ask in wanted} == set(OWNERS)
    assert any(ask.again_s is not None for ask in wanted)
    assert all(ask.idempotency for ask in wanted if ask.again_s is not None)
    assert [ask.at_s for ask in wanted] == sorted(ask.at_s for ask in wanted)
    assert len({ask.id for ask in wanted}) == len(wanted)
    broken = troubles(str(seed), wishes, 150.0)
    assert {(trouble.target, trouble.how) for trouble in broken} == set(DECK)
    assert all(trouble.at_s < 135.0 for trouble in broken), "time is left to recover"
    assert signal.SIGKILL in {trouble.how for trouble in broken[:5]}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_the_profiles_are_configurations(profile: Profile) -> None:
    assert list(Settings(**profile.config()).models) == [profile.name]


def test_every_request_is_counted_once_and_every_fault_is_told() -> None:
    stories = [Story(PLAIN) for _ in range(6)]
    done, cut, left, lost, silent, double = stories
    done.close(End.COMPLETED)
    done.images = [b"1"]
    cut.close(End.FAILED, CUT_OFF)
    cut.close(End.COMPLETED)
    left.close(End.LEFT)
    lost.close(End.COMPLETED)
    lost.close(End.LOST, "gone")
    lost.close(End.COMPLETED)
    double.close(End.COMPLETED)
    double.twice.append("one key, and two jobs")
    double.wrong += ["image 0", "image 1"]
    totals = add_up(stories)
    assert (totals.asked, totals.completed, totals.left, totals.failed) == (6, 2, 1, Counter({CUT_OFF: 1}))
    assert (totals.lost, totals.twice, totals.wrong, totals.images) == (2, 1, 2, 1), "who never ended is lost, too"
    assert silent.end is End.PENDING
    told = faults(stories)
    assert len(told) == 5
    assert all("ask-0001" in line and "key bob" in line and "seed 7" in line for line in told)


def reading(uptime_s: float, redone: int, **rows: int) -> Reading:
    workers = [
        WorkerStats(name, "m", "sim:0", 1, "ready", 4, 0, 0, 0.0, 0.1, 1.0, 0, WorkerCounters(steps=count, rows=count))
        for name, count in rows.items()
    ]
    return Reading(Snapshot(0.0, uptime_s, [], workers), Counter(steps_redone=redone), {})


def test_counters_of_every_life_are_added_up() -> None:
    seen = Seen()
    for one in (reading(1, 2, a=10), reading(5, 7, a=30, b=5), reading(0.5, 1, b=9), reading(2, 3, c=1)):
        seen.take_in(one, 100.0)
    assert seen.total["steps_redone"] == 10
    assert {name: counters.rows for name, counters in seen.workers.items()} == {"a": 30, "b": 9, "c": 1}
    assert seen.most_workers == 2


def test_a_broken_connection_is_explained_by_a_death_that_came_later_or_was_not_mended_yet() -> None:
    seen = Seen()
    assert not seen.explains(1.0)
    seen.died(10.0)
    assert [seen.explains(began) for began in (9.0, 10.1, 30.0)] == [True, True, True]
    seen.take_in(reading(20.0, 0), 11.0)  # the dead one's word was on its way
    assert seen.explains(10.9)
    seen.take_in(reading(1.0, 0), 15.0)
    assert [seen.explains(began) for began in (9.0, 14.9, 15.1)] == [True, True, False]


REST = reading(1.0, 0, a=10)
QUEUED = ModelStats("m", 2, 0, None, 0.0, 0.0, 0.0)
HOLDING = msgspec.structs.replace(REST.snapshot.workers[0], assigned=1)
DRAINING = msgspec.structs.replace(REST.snapshot.workers[0], state="draining")


@pytest.mark.parametrize(
    ("changes", "books", "told"),
    [
        ({}, {"tasks": 0.0}, []),
        ({}, {"tasks": 1.0, "slots": 0.0}, ["the balancer still has 1 tasks"]),
        ({"models": [QUEUED]}, {}, ["2 images queued and 0 with workers"]),
        ({"workers": [HOLDING]}, {}, ["worker a is ready and holds 1 images"]),
        ({"workers": [DRAINING]}, {}, ["worker a is draining and holds 0 images"]),
    ],
)
def test_what_is_leaked_is_told(changes: dict[str, Any], books: dict[str, float], told: list[str]) -> None:
    snapshot = msgspec.structs.replace(REST.snapshot, **changes)
    assert under_way(Reading(snapshot, Counter(), books)) == told


def test_a_worker_that_steps_for_nobody_is_told() -> None:
    assert ghosts(REST, reading(2.0, 0, a=10, new=3)) == []
    assert ghosts(REST, reading(2.0, 0, a=11)) == ["worker a steps, and nobody has given it anything"]
    assert ghosts(REST, None) == ["the balancer does not answer"]
