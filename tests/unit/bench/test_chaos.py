"""The plan, the accounts and the observations of chaos runs."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

import msgspec
import pytest

from configs.settings import Settings
from scripts.chaos_lib.fault_plan import FAULT_WEIGHTS, PlannedRequest, plan_faults, plan_requests
from scripts.chaos_lib.monitor import Observations, Scrape
from scripts.chaos_lib.outcomes import CUT_OFF, EndState, Outcome, count_outcomes, violations
from scripts.chaos_lib.profiles import OWNERS, PROFILES, Profile
from scripts.chaos_lib.run import unassigned_steps, unfinished_work
from wire.messages import WorkerCounters
from wire.snapshot import ModelStats, Snapshot, WorkerStats

OWNER_NAMES = list(OWNERS)
PLAIN = PlannedRequest("request-0001", 1.0, "bob", "sync", "a seven", 7, 20, "64x64", 1, False, None, None, 1.0, 0)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_plan_follows_from_seed(profile: Profile) -> None:
    load = profile.load
    first, repeated, other = (plan_requests(seed, load, OWNER_NAMES, 60.0) for seed in ("7", "7", "8"))
    assert first == repeated != other
    faults, repeated_faults, other_faults = (plan_faults(seed, load, 60.0) for seed in ("7", "7", "8"))
    assert faults == repeated_faults != other_faults


@pytest.mark.parametrize("seed", range(5))
def test_plan_has_every_kind_of_request_and_fault(seed: int) -> None:
    load = PROFILES["sim"].load
    requests = plan_requests(str(seed), load, OWNER_NAMES, 150.0)
    assert {request.mode for request in requests} == {
        "sync", "predict", "stream", "slow", "abort", "abort_stream", "repeat", "job", "follow"
    }  # fmt: skip
    assert {request.owner for request in requests} == set(OWNERS)
    assert any(request.resend_after_s is not None for request in requests)
    assert all(request.idempotency for request in requests if request.resend_after_s is not None)
    assert [request.at_s for request in requests] == sorted(request.at_s for request in requests)
    assert len({request.id for request in requests}) == len(requests)
    faults = plan_faults(str(seed), load, 150.0)
    assert {(fault.target, fault.signum) for fault in faults} == set(FAULT_WEIGHTS)
    assert all(fault.at_s < 135.0 for fault in faults), "time is left to recover"
    assert signal.SIGKILL in {fault.signum for fault in faults[:5]}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_profiles_are_valid_configurations(profile: Profile) -> None:
    assert list(Settings(**profile.config()).models) == [profile.name]


def test_outcomes_are_counted_once_and_violations_are_listed() -> None:
    outcomes = [Outcome(PLAIN) for _ in range(6)]
    done, cut, aborted, lost, pending, double = outcomes
    done.close(EndState.COMPLETED)
    done.images = [b"1"]
    cut.close(EndState.FAILED, CUT_OFF)
    cut.close(EndState.COMPLETED)
    aborted.close(EndState.ABORTED)
    lost.close(EndState.COMPLETED)
    lost.close(EndState.LOST, "gone")
    lost.close(EndState.COMPLETED)
    double.close(EndState.COMPLETED)
    double.duplicates.append("one key, and two jobs")
    double.wrong += ["image 0", "image 1"]
    totals = count_outcomes(outcomes)
    assert (totals.requests, totals.completed, totals.aborted, totals.failed) == (6, 2, 1, Counter({CUT_OFF: 1}))
    assert (totals.lost, totals.duplicates, totals.wrong, totals.images) == (2, 1, 2, 1), (
        "a request without an end is lost, too"
    )
    assert pending.end is EndState.PENDING
    found = violations(outcomes)
    assert len(found) == 5
    assert all("request-0001" in line and "key bob" in line and "seed 7" in line for line in found)


def scrape(uptime_s: float, redone: int, **rows: int) -> Scrape:
    workers = [
        WorkerStats(name, "m", "sim:0", 1, "ready", 4, 0, 0, 0.0, 0.1, 1.0, 0, WorkerCounters(steps=count, rows=count))
        for name, count in rows.items()
    ]
    return Scrape(Snapshot(0.0, uptime_s, [], workers), Counter(steps_redone=redone), {})


def test_counters_of_every_balancer_are_added() -> None:
    observations = Observations()
    for each in (scrape(1, 2, a=10), scrape(5, 7, a=30, b=5), scrape(0.5, 1, b=9), scrape(2, 3, c=1)):
        observations.add(each, 100.0)
    assert observations.total["steps_redone"] == 10
    assert {name: counters.rows for name, counters in observations.workers.items()} == {"a": 30, "b": 9, "c": 1}
    assert observations.max_workers == 2


def test_death_before_or_after_start_explains_broken_connection() -> None:
    observations = Observations()
    assert not observations.has_death_since(1.0)
    observations.record_death(10.0)
    assert [observations.has_death_since(started) for started in (9.0, 10.1, 30.0)] == [True, True, True]
    observations.add(scrape(20.0, 0), 11.0)  # the answer of the dead balancer arrives late
    assert observations.has_death_since(10.9)
    observations.add(scrape(1.0, 0), 15.0)
    assert [observations.has_death_since(started) for started in (9.0, 14.9, 15.1)] == [True, True, False]


IDLE = scrape(1.0, 0, a=10)
QUEUED = ModelStats("m", 2, 0, None, 0.0, 0.0, 0.0)
HOLDING = msgspec.structs.replace(IDLE.snapshot.workers[0], assigned=1)
DRAINING = msgspec.structs.replace(IDLE.snapshot.workers[0], state="draining")


@pytest.mark.parametrize(
    ("changes", "in_flight", "found"),
    [
        ({}, {"tasks": 0.0}, []),
        ({}, {"tasks": 1.0, "slots": 0.0}, ["the balancer still has 1 tasks"]),
        ({"models": [QUEUED]}, {}, ["2 images queued and 0 with workers"]),
        ({"workers": [HOLDING]}, {}, ["worker a is ready and holds 1 images"]),
        ({"workers": [DRAINING]}, {}, ["worker a is draining and holds 0 images"]),
    ],
)
def test_unfinished_work_is_listed(changes: dict[str, Any], in_flight: dict[str, float], found: list[str]) -> None:
    snapshot = msgspec.structs.replace(IDLE.snapshot, **changes)
    assert unfinished_work(Scrape(snapshot, Counter(), in_flight)) == found


def test_steps_without_task_are_listed() -> None:
    assert unassigned_steps(IDLE, scrape(2.0, 0, a=10, new=3)) == []
    assert unassigned_steps(IDLE, scrape(2.0, 0, a=11)) == ["worker a runs steps without a task"]
    assert unassigned_steps(IDLE, None) == ["the balancer does not answer"]
