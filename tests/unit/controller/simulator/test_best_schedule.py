"""The best schedule: its queue simulation follows the rules of the cluster, and its schedule can be run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs.scaling import Scaling
from controller.simulator.cli import run
from controller.simulator.cluster import SimCluster
from controller.simulator.model_sim import ModelSim, WorkerProfile, batch_slowdowns
from controller.simulator.reference.beam_search import BeamSearch
from controller.simulator.reference.local_search import LocalSearch
from controller.simulator.reference.lower_bound import min_hours
from controller.simulator.reference.oracle import best_schedule
from controller.simulator.reference.queue_sim import QueueSim, QueueState
from controller.simulator.reference.schedule_agent import ScheduleAgent, WorkerSchedule, simulate_schedule
from controller.simulator.results import min_gpu_hours, model_results
from controller.simulator.scenarios import Scenario, Traffic
from controller.simulator.synthetic import synthetic_traffic


def scenario(traffic: Traffic, max_workers: int) -> Scenario:
    scaling = Scaling(max_workers=max_workers, policy="static")
    span_s = traffic.times[-1] + 60.0
    return Scenario({"m": traffic}, {"m": WorkerProfile("m")}, {"m": scaling}, max_workers, span_s)


def burst(slowdowns: tuple[float, ...] = (1.0,)) -> Scenario:
    """Five minutes without requests, then one minute with a request per second."""
    traffic = Traffic([300.0 + number for number in range(60)], [2.0] * 60)
    scaling = Scaling(max_workers=4, policy="static")
    return Scenario({"m": traffic}, {"m": WorkerProfile("m", slowdowns)}, {"m": scaling}, 4, 600.0)


@pytest.mark.parametrize(("slowdowns", "rate"), [(batch_slowdowns(1, 1.0), 0.8), (batch_slowdowns(4, 0.3), 1.1)])
def test_stage_equals_the_cluster_simulation(slowdowns: tuple[float, ...], rate: float) -> None:
    traffic = synthetic_traffic(f"synthetic:poisson?rate={rate}&hours=0.2&work=6", 4)
    lane, state, late = QueueSim(traffic.times, traffic.work, slowdowns, 10.0), QueueState(((),) * 4), 0
    for stage in range(200):
        state, more = lane.advance(state, stage * 10.0, stage * 10.0 + 10.0)
        late += more
    model = ModelSim(WorkerProfile("m", slowdowns), *traffic)
    cluster = SimCluster({"m": model})
    for number in range(4):
        cluster.start("m", f"cuda:{number}", 0.0, ready=True)
    while model.done < len(traffic.times):
        if model.tail < len(traffic.times) and traffic.times[model.tail] < cluster.next_at:
            cluster.arrive(model)
        else:
            cluster.step()
    # Either of two equally busy workers may be next, which matters only if tasks share a worker.
    assert model.late == (late if len(slowdowns) == 1 else pytest.approx(late, rel=0.02))
    assert late > 0
    assert state.head == len(traffic.times)
    assert lane.remaining_s(state, len(traffic.times)) == pytest.approx(0)


def test_removed_worker_returns_its_tasks() -> None:
    lane = QueueSim([0.0], [1.0], (1.0,), 10.0)
    state = lane.resize(QueueState(((5.0,), (), (2.0,)), (9.0,), 3), 1)
    assert state == QueueState(((5.0,),), (9.0, 2.0), 3)
    assert lane.resize(state, 2).servers == ((5.0,), ())


def test_late_request_is_counted_a_single_time() -> None:
    lane = QueueSim([0.0, 0.0], [30.0, 1.0], (1.0,), 10.0)
    state, counts = QueueState(((),)), []
    for stage in range(4):
        state, late = lane.advance(state, 10.0 * stage, 10.0 * stage + 10.0)
        counts.append(late)
    assert counts == [0, 1, 0, 0]
    assert state.head == 2


def test_agent_follows_the_schedule() -> None:
    given = burst()
    counts = [1] * 29 + [3] * 10 + [1] * 21
    slots = given.targets()["m"].slots
    replayed = given.run(ScheduleAgent("m", WorkerSchedule(counts, 0.0, 0, 10.0), 40.0, slots), given.targets())
    history = replayed.models["m"].history
    # Two workers start 40 s before the 30th stage, and drain after the 39th.
    assert [entry for entry in history if entry[0]] == [
        (250.0, 1, 1),
        (250.0, 2, 1),
        (290.0, 1, 2),
        (290.0, 0, 3),
        (390.0, 0, 2),
        (390.0, 0, 1),
    ]


@pytest.mark.parametrize("slowdowns", [(1.0,), (1.0, 1.4)])
def test_best_schedule_starts_before_the_burst(slowdowns: tuple[float, ...]) -> None:
    given = burst(slowdowns)
    row = best_schedule(given, 0.95)
    assert row is not None
    assert row.in_slo >= 0.95
    (peak,) = model_results("peak", run("peak", given))
    assert row.gpu_hours < 0.5 * peak.gpu_hours


@pytest.mark.parametrize("search", [BeamSearch, LocalSearch])
def test_search_cost_equals_the_simulation(search: type[BeamSearch] | type[LocalSearch]) -> None:
    given = burst()
    found = search(given).cheapest(20.0)
    replayed = simulate_schedule(given, found)
    (row,) = model_results("best", replayed)
    assert row.gpu_hours == pytest.approx(found.paid_s / 3600, rel=0.02)
    assert row.requests * (1 - row.in_slo) == pytest.approx(found.late, abs=1)
    assert row.gpu_hours >= min_gpu_hours(replayed.models["m"])
    assert search(given).cheapest(1000.0).late <= found.late


@pytest.mark.parametrize(("work_s", "every_s", "count"), [(600.0, 120.0, 20), (3600.0, 900.0, 6), (0.05, 0.5, 400)])
def test_search_works_at_any_job_length(work_s: float, every_s: float, count: int) -> None:
    times = [100.0 + every_s * number for number in range(count)]
    given = scenario(Traffic(times, [work_s] * count), max_workers=12)
    row = best_schedule(given)
    assert row is not None
    assert row.unserved == 0
    (peak,) = model_results("peak", run("peak", given))
    assert min_hours(given, "m") <= row.gpu_hours <= 0.9 * peak.gpu_hours


def test_search_follows_a_flash() -> None:
    """Twenty times the requests within a second, for a minute."""
    times = [10.0 * number for number in range(20)] + [200.0 + number / 2 for number in range(120)]
    given = scenario(Traffic(times, [4.0] * len(times)), max_workers=12)
    row = best_schedule(given)
    assert row is not None
    assert row.in_slo >= 0.99
    assert min_hours(given, "m") <= row.gpu_hours <= 0.5 * 12 * given.span_s / 3600


def test_search_begins_with_all_workers_where_fewer_are_too_late() -> None:
    """What arrives before the first start has ended needs more workers than the load does."""
    times = [number / 2 for number in range(120)] + [60.0 + 4 * number for number in range(60)]
    given = scenario(Traffic(times, [4.0] * len(times)), max_workers=12)
    given = replace(given, scalings={"m": Scaling(max_workers=12, policy="static", slo={"percentile": 30})})
    row = best_schedule(given)
    assert row is not None
    assert row.in_slo >= 0.3
    (peak,) = model_results("peak", run("peak", given))
    assert row.gpu_hours < 0.9 * peak.gpu_hours


def test_impossible_promise_has_no_schedule() -> None:
    assert best_schedule(scenario(Traffic([0.0] * 10, [100.0] * 10), max_workers=2)) is None
