"""Complete simulations: ticks of the agent, results, and reproducibility."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import TickResult
from controller.planning.plan import Plan
from controller.simulator.agents import Observe, ScalingAgent
from controller.simulator.cli import run
from controller.simulator.model_sim import WorkerProfile
from controller.simulator.results import PolicyResult, model_results, total_result
from controller.simulator.scenarios import PRESETS, VARIANTS, Scenario, Traffic, from_preset
from controller.simulator.synthetic import synthetic_traffic
from controller.simulator.urgency import Urgency
from controller.types import Observation
from host.types import Exit


def scenario(
    times: list[float], work: list[float], *, max_workers: int = 3, span_s: float = 60.0, **service: Any
) -> Scenario:
    scaling = Scaling(max_workers=max_workers, policy="static")
    return Scenario(
        {"m": Traffic(times, work)}, {"m": WorkerProfile("m", **service)}, {"m": scaling}, max_workers, span_s
    )


class RecordingAgent(ScalingAgent):
    """A scaling agent that only records its ticks and observations."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.asked: list[float] = []
        self.seen: list[Observation] = []
        self.dead: list[str] = []
        #: Time and observation of each call of `is_urgent`.
        self.urgency_checks: list[tuple[float, Observation]] = []

    def tick(self, observe: Observe, now: float) -> TickResult:
        self.asked.append(now)
        self.seen.append(observe("m"))
        return TickResult(Plan([], {}), [])

    def next_tick_at(self) -> float:
        return self.asked[-1] + self.every_s

    def is_urgent(self, waiting: Sequence[str], observe: Observe, now: float) -> bool:
        for name in waiting:
            self.urgency_checks.append((now, observe(name)))
        return False

    def on_worker_exit(self, ended: Exit) -> None:
        self.dead.append(ended.process.id)

    def desired_workers(self, model: str) -> int:
        return 1


def run_recorded(given: Scenario, every_s: float = 30.0) -> RecordingAgent:
    agent = RecordingAgent(every_s)
    given.run(agent, given.targets())
    return agent


def test_agent_runs_at_ticks_and_polls_with_queued_tasks() -> None:
    agent = run_recorded(scenario([10.2, 10.4], [2.0, 2.0]))
    assert agent.asked == [0.0, 30.0, 60.0]
    # The second request waits until 12.2.
    assert [at for at, _ in agent.urgency_checks] == [11.0, 12.0]


def test_crash_triggers_a_tick_at_once() -> None:
    given = scenario([0.0], [5.0], mean_lifetime_s=20.0, span_s=100.0)
    agent = run_recorded(given)
    (crashed_at,) = [at for at in agent.asked if at % 1]
    assert agent.dead == ["m-1"]
    assert agent.seen[agent.asked.index(crashed_at)].replicas == []


def test_observation_equals_the_balancer_snapshot() -> None:
    agent = run_recorded(scenario([5.0, 5.5, 6.0, 100.0], [4.0, 20.0, 3.0, 1.0], span_s=200.0))
    queue = dict(agent.urgency_checks)[28.0].queue
    assert queue is not None
    assert (queue.queued, queue.running, queue.started_total, queue.started_late_total) == (1, 1, 2, 0)
    assert queue.backlog_work_s == pytest.approx(1.0 + 3.0)
    assert queue.mean_work_s == pytest.approx(9.0)
    assert (queue.arrivals_short_window, queue.arrivals_long_window, queue.oldest_wait_s, queue.uptime_s) == (
        3,
        3,
        22.0,
        28.0,
    )
    later = agent.seen[agent.asked.index(30.0)].queue
    assert later is not None
    assert (later.started_total, later.started_late_total) == (3, 1)


def test_requests_that_left_are_observed_as_late() -> None:
    given = scenario([5.0, 6.0, 7.0], [40.0, 1.0, 1.0])
    urgencies = [Urgency(deadline_s=deadline_s) for deadline_s in (99.0, 20.0, 99.0)]
    traffic = {"m": Traffic(*given.traffic["m"][:2], urgencies)}
    agent = run_recorded(replace(given, traffic=traffic))
    queues = [seen.queue for seen in agent.seen if seen.queue is not None]
    assert [(each.started_total, each.started_late_total, each.unstarted_late_total) for each in queues] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 1, 1),
    ]


def test_unknown_sizes_use_the_mean() -> None:
    given = scenario([0.0, 0.0, 0.0], [2.0, 10.0, 10.0])
    unknown = Scenario(**{**{n: getattr(given, n) for n in Scenario.__dataclass_fields__}, "sizes_known": False})
    agent = run_recorded(unknown)
    queue = dict(agent.urgency_checks)[3.0].queue
    assert queue is not None
    assert queue.backlog_work_s == pytest.approx(2 * 2.0), "two are left, and the only one that ended took 2 s"


def test_static_run_equals_hand_calculation() -> None:
    (row,) = model_results("static", run("static", scenario([0.0, 0.0, 50.0], [30.0, 1.0, 1.0])))
    assert (row.requests, row.unserved, row.cold_starts) == (3, 0, 0)
    assert (row.in_slo, row.wait_p50_s, row.wait_p99_s, row.total_p99_s) == (2 / 3, 0.0, 30.0, 31.0)
    assert row.gpu_hours == pytest.approx(60 / 3600)
    assert row.utilisation == pytest.approx(32 / 60)


def test_unserved_request_is_late() -> None:
    class Nobody(RecordingAgent):
        def desired_workers(self, model: str) -> int:
            return 0

    given = scenario([1.0], [1.0])
    none = {name: role._replace(scaling=Scaling(min_workers=0)) for name, role in given.targets().items()}
    (row,) = model_results("nobody", given.run(Nobody(30.0), none))
    assert (row.unserved, row.in_slo, row.wait_p99_s) == (1, 0.0, math.inf)
    assert row.as_json()["wait_p99_s"] is None


def test_totals_add_up() -> None:
    parts = [
        PolicyResult("p", "a", 100, 0, 1.0, 0.0, 1.0, 2.0, 2.0, 3, 4, 0, 0.5),
        PolicyResult("p", "b", 300, 1, 0.9, 1.0, 9.0, 9.0, 6.0, 1, 1, 2, 0.9),
    ]
    both = total_result("p", parts)
    assert (both.requests, both.unserved, both.gpu_hours, both.cold_starts, both.crashes) == (400, 1, 8.0, 4, 2)
    assert both.in_slo == pytest.approx(0.925)
    assert both.utilisation == pytest.approx(0.8)


@pytest.mark.parametrize(
    "policy", ["slo_work", "queue_depth", "ongoing_requests", "hpa", "kpa", "ray", "lightning", "keda"]
)
def test_equal_seeds_give_equal_results(policy: str) -> None:
    traffic = synthetic_traffic("synthetic:bursts?rate=0.4&hours=0.5", 3)
    given = from_preset(PRESETS["s3"], traffic, 1800.0, cold_starts_s=(20.0, 40.0, 60.0), seed=5)
    first, second = (model_results(policy, run(policy, given)) for _ in range(2))
    assert first == second
    assert first[0].unserved == 0


def test_several_models_share_the_pool() -> None:
    one, other = (
        synthetic_traffic("synthetic:onoff?rate=1&on=300&off=300&hours=0.4", 1),
        synthetic_traffic("synthetic:poisson?rate=0.2&hours=0.4", 2),
    )
    scaling = Scaling(min_workers=1, max_workers=4, policy="slo_work", interval_s=10)
    given = Scenario(
        {"a": one, "b": other}, {n: WorkerProfile(n) for n in "ab"}, dict.fromkeys("ab", scaling), 4, 1440.0
    )
    replayed = run("slo_work", given)
    assert all(row.unserved == 0 for row in model_results("slo_work", replayed))
    ready = {name: model.history for name, model in replayed.models.items()}
    assert max(starting + serving for _, starting, serving in ready["a"]) > 1
    assert max(starting + serving for _, starting, serving in ready["b"]) <= 3
    assert sum(len(model.workers) for model in replayed.models.values()) <= 4


def test_one_worker_to_zero_and_back() -> None:
    given = scenario([10.0, 2000.0], [1.0, 1.0], span_s=3000.0)
    scaling = Scaling(min_workers=0, max_workers=3, policy="slo_work", initial_workers=1)
    zero = Scenario(**{**{n: getattr(given, n) for n in Scenario.__dataclass_fields__}, "scalings": {"m": scaling}})
    replayed = run("slo_work", zero)
    (row,) = model_results("slo_work", replayed)
    model = replayed.models["m"]
    assert row.unserved == 0
    assert any(count == 0 for _, starting, ready in model.history for count in [starting + ready])
    assert 40.0 <= model.waits[1] <= 42.0, "a cold start, and no tick before it"


# ---- traffic


def test_variants_equal_hand_calculation() -> None:
    traffic = Traffic([1.0, 4.0], [2.0, 6.0])
    assert VARIANTS["reversed"][0](traffic, 10.0, 0) == Traffic([6.0, 9.0], [6.0, 2.0])
    assert VARIANTS["reversed"][0](traffic, 3.0, 0) == Traffic([0.0, 3.0], [6.0, 2.0])
    assert VARIANTS["half"][0](traffic, 10.0, 0) == Traffic([1.0, 4.0], [1.0, 3.0])
    assert VARIANTS["double"][0](traffic, 10.0, 0) == Traffic([1.0, 4.0], [4.0, 12.0])


def test_variants_keep_their_invariants() -> None:
    traffic = synthetic_traffic("synthetic:poisson?rate=1&hours=4", 1)
    work = sum(traffic.work)
    third = VARIANTS["heavier"][0](traffic, 14_400.0, 1)
    assert len(third.times) == pytest.approx(len(traffic.times) / 3, rel=0.05)
    assert sum(third.work) == pytest.approx(work, rel=0.1)
    for name in ("paired", "bunched"):
        more = VARIANTS[name][0](traffic, 14_400.0, 1)
        assert len(more.times) == pytest.approx(1.25 * len(traffic.times), rel=0.03)
        assert list(more.times) == sorted(more.times)
    heavy = VARIANTS["mixed"][0](traffic, 14_400.0, 1)
    assert 1 < sum(heavy.work) / work < 1 + 5 * 0.35


def test_replay_without_traffic_ends() -> None:
    given = scenario([], [], span_s=100.0)
    replayed = run("slo_work", given)
    assert replayed.models["m"].worker_s == 100.0
