"""The clairvoyant: its stages follow the machine's rules, and what it finds can be run."""

from __future__ import annotations

import pytest

from configs.scaling import Scaling
from controller.simulator.cli import run
from controller.simulator.cluster import Pool
from controller.simulator.model_sim import Service, Station, slow_downs
from controller.simulator.reference.oracle import Effort, Foreseen, Schedule, Search, best_known, follow
from controller.simulator.reference.queue_sim import Lane, State
from controller.simulator.results import least_hours, rows
from controller.simulator.scenarios import Scenario, Traffic
from controller.simulator.synthetic import make


def burst(slow: tuple[float, ...] = (1.0,)) -> Scenario:
    """Nothing for five minutes, then a request a second for one."""
    traffic = Traffic([300.0 + number for number in range(60)], [2.0] * 60)
    scaling = Scaling(max_workers=4, policy="static")
    return Scenario({"m": traffic}, {"m": Service("m", slow)}, {"m": scaling}, 4, 600.0)


@pytest.mark.parametrize(("slow", "rate"), [(slow_downs(1, 1.0), 0.8), (slow_downs(4, 0.3), 1.1)])
def test_a_stage_is_what_the_machine_does(slow: tuple[float, ...], rate: float) -> None:
    traffic = make(f"synthetic:poisson?rate={rate}&hours=0.2&work=6", 4)
    lane, state, late = Lane(*traffic, slow, 10.0), State(((),) * 4), 0
    for stage in range(200):
        state, more = lane.advance(state, stage * 10.0, stage * 10.0 + 10.0)
        late += more
    station = Station(Service("m", slow), *traffic)
    pool = Pool({"m": station})
    for number in range(4):
        pool.start("m", f"cuda:{number}", 0.0, ready=True)
    while station.done < len(traffic.times):
        if station.tail < len(traffic.times) and traffic.times[station.tail] < pool.next_at:
            pool.arrive(station)
        else:
            pool.step()
    # Of workers that are equally busy either may be next, which matters only where tasks share a worker.
    assert station.late == (late if len(slow) == 1 else pytest.approx(late, rel=0.02))
    assert late > 0
    assert state.head == len(traffic.times)
    assert lane.left_s(state, len(traffic.times)) == pytest.approx(0)


def test_who_goes_hands_over() -> None:
    lane = Lane([0.0], [1.0], (1.0,), 10.0)
    state = lane.resized(State(((5.0,), (), (2.0,)), (9.0,), 3), 1)
    assert state == State(((5.0,),), (9.0, 2.0), 3)
    assert lane.resized(state, 2).servers == ((5.0,), ())


def test_who_is_late_is_counted_once() -> None:
    lane = Lane([0.0, 0.0], [30.0, 1.0], (1.0,), 10.0)
    state, counts = State(((),)), []
    for stage in range(4):
        state, late = lane.advance(state, 10.0 * stage, 10.0 * stage + 10.0)
        counts.append(late)
    assert counts == [0, 1, 0, 0]
    assert state.head == 2


def test_a_schedule_is_followed() -> None:
    given = burst()
    counts = [1] * 29 + [3] * 10 + [1] * 21
    slots = given.roles()["m"].slots
    replayed = given.run(Foreseen("m", Schedule(counts, 0.0, 0), 40.0, slots), given.roles())
    history = replayed.pool.stations["m"].history
    # Two start forty seconds before the thirtieth stage, and go after the thirty-ninth.
    assert [entry for entry in history if entry[0]] == [
        (250.0, 1, 1),
        (250.0, 2, 1),
        (290.0, 1, 2),
        (290.0, 0, 3),
        (390.0, 0, 2),
        (390.0, 0, 1),
    ]


@pytest.mark.parametrize("slow", [(1.0,), (1.0, 1.4)])
def test_the_clairvoyant_starts_before_the_burst(slow: tuple[float, ...]) -> None:
    given = burst(slow)
    row = best_known(given, 0.95, Effort(kept=3, rounds=6))
    assert row is not None
    assert row.in_slo >= 0.95
    (peak,) = rows("peak", run("peak", given))
    assert row.gpu_hours < 0.5 * peak.gpu_hours


def test_what_the_search_promises_is_what_the_simulator_gives() -> None:
    given = burst()
    found = Search(given).weighing(20.0)
    replayed = follow(given, found)
    (row,) = rows("best", replayed)
    assert row.gpu_hours == pytest.approx(found.paid_s / 3600, rel=0.02)
    assert row.requests * (1 - row.in_slo) == pytest.approx(found.late, abs=1)
    assert row.gpu_hours >= least_hours(replayed.pool.stations["m"])
    assert Search(given).weighing(1000.0).late <= found.late
