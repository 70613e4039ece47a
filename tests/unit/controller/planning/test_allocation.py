"""Allocation of scarce devices by saved waiting, and swaps between models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.scaling import Scaling
from controller.planning.allocation import HORIZON_S, Load, expected_waiting, load_of, waiting_saved
from controller.planning.plan import ModelDemand, Plan, make_plan
from controller.types import (
    CrashBackoff,
    Decision,
    Device,
    Drain,
    Observation,
    Queue,
    Replica,
    Stage,
    Start,
    WorkerLimits,
)
from host.types import WorkerProcess

NOW = 10_000.0
GIB = 2**30
SLOTS = ("sim:0", "sim:1")
SCALING = Scaling(slo={"max_wait_s": 10}, look_back_period_s=90)


def reasons(made: Plan) -> dict[str, str]:
    return {model: blocked.reason for model, blocked in made.blocked.items()}


@pytest.mark.parametrize(
    ("load", "workers", "expected"),
    [
        # A backlog of 60 s of work, 10 s each, nothing arriving: one worker takes a minute over it. At the four points
        # (15, 45, 75, 105 s) 45, 15, 0, 0 s are left: 15 s on average, or 1.5 tasks, each worth a tenth.
        (Load(60, 0, 10, 1, 10), 1, 0.15),
        (Load(60, 0, 10, 1, 10), 0, 0.6),
        (Load(60, 0, 10, 4, 10), 1, 0.0),
        # Twice the allowed wait halves the weight.
        (Load(60, 0, 10, 1, 20), 1, 0.075),
    ],
)
def test_waiting_of_backlog_equals_hand_calculation(load: Load, workers: int, expected: float) -> None:
    assert expected_waiting(load, workers) == pytest.approx(expected)


loads = st.builds(
    Load,
    backlog_s=st.floats(0, 1e4),
    rate=st.floats(0, 20),
    mean_work_s=st.floats(0.01, 100),
    power=st.floats(0.5, 16),
    patience_s=st.floats(0.5, 120),
)


@given(loads, st.integers(1, 40), st.floats(10, 2000))
def test_saved_waiting_is_positive_and_diminishing(load: Load, workers: int, ahead_s: float) -> None:
    first, second = waiting_saved(load, workers, ahead_s), waiting_saved(load, workers + 1, ahead_s)
    assert math.isfinite(first)
    assert second >= 0
    assert first >= second - 1e-9 * (1 + expected_waiting(load, 0, ahead_s)), "but for rounding"


def test_load_variance_gives_idle_worker_a_value() -> None:
    busy, calm = Load(0, 0.9, 1, 1, 10), Load(0, 0.1, 1, 1, 10)
    assert waiting_saved(busy, 2) > 5 * waiting_saved(calm, 2) > 0


@pytest.mark.parametrize(
    ("queue", "load"),
    [
        (None, None),
        (Queue(3, 2, 4, 2.0, 50.0, 5.0, 30, 60, uptime_s=900), Load(50, 30 / 90, 5, 2, 10)),
        # The balancer counted for one minute only.
        (Queue(0, 0, 1, 1.0, 0.0, 5.0, 30, 30, uptime_s=60), Load(0, 0.5, 5, 1, 10)),
        # The same rule as that of the policies for a balancer that has just started.
        (Queue(0, 0, 1, 1.0, 0.0, 5.0, 30, 30, uptime_s=0.5), Load(0, 1.0, 5, 1, 10)),
        # A task of unknown size counts as long as its allowed wait.
        (Queue(3, 1, arrivals_short_window=9, uptime_s=900), Load(40, 0.1, 10, 1, 10)),
        (Queue(0, 0), Load(0, 0, 10, 1, 10)),
    ],
)
def test_load_of_a_model(queue: Queue | None, load: Load | None) -> None:
    assert load_of(queue, SCALING) == load


# ---- swaps


def replica(name: str, device: str, *, load: int = 0, age: float = 1000.0, stage: Stage = Stage.READY) -> Replica:
    ready = NOW - age if stage is not Stage.STARTING else None
    drained = NOW - 1 if stage is Stage.DRAINING else None
    return Replica(WorkerProcess(name, name[0], device, 1, NOW - age - 10, drained, ready), stage, load)


def wanted(
    model: str,
    desired: int,
    *replicas: Replica,
    least: int = 0,
    tasks: int = 0,
    need: float = 24,
    slots: Sequence[str] = SLOTS,
    known: bool = True,
    retry_at: float = 0.0,
) -> ModelDemand:
    """Return a model with `tasks` of 5 s of work each, no arrivals, and a cold start of 40 s."""
    queue = Queue(tasks, 0, 1, 1.0, tasks * 5.0, 5.0, uptime_s=900) if known else None
    seen = Observation(model, queue, replicas)
    limits = WorkerLimits(least, 8, 60, 30, 10)
    crashes = CrashBackoff(1, retry_at) if retry_at else CrashBackoff()
    decision = Decision(desired, "why")
    return ModelDemand(seen, decision, limits, crashes, slots, int(need * GIB), scaling=SCALING)


def plan(*models: ModelDemand, memory: float = 24, faulty: Sequence[str] = ()) -> Plan:
    names = dict.fromkeys(slot for own in models for slot in own.slots)
    devices = {name: Device(name, int(memory * GIB), "broken" if name in faulty else "") for name in names}
    return make_plan(models, NOW, devices)


def drained(planned: Plan) -> list[str]:
    assert [swap.worker for swap in planned.swaps] == [a.id for a in planned.actions if isinstance(a, Drain)]
    return [swap.worker for swap in planned.swaps]


A = (replica("a1", "sim:0"), replica("a2", "sim:1", age=900))
BUSY = (replica("a1", "sim:0", load=2), replica("a2", "sim:1", load=1))
NEW = (replica("a1", "sim:0", age=30), replica("a2", "sim:1", age=30))
GOING = (A[0], replica("a2", "sim:1", stage=Stage.DRAINING))
B2 = replica("b2", "sim:2", age=900)
B1, C1, D1 = replica("b1", "sim:1"), replica("c1", "sim:1"), replica("d1", "sim:1")
LOADING = replica("a2", "sim:1", age=20, stage=Stage.STARTING)
THREE = ("sim:0", "sim:1", "sim:2")
#: Two small workers on one GPU, and a needed worker on the other.
SMALL = (wanted("a", 1, A[0], need=10), wanted("c", 1, replica("c1", "sim:0"), need=10), wanted("d", 1, D1, tasks=9))


@pytest.mark.parametrize(
    ("models", "gone"),
    [
        # It is below its minimum: the least busy worker of the model with two is drained.
        ([wanted("a", 2, *BUSY), wanted("b", 1, least=1)], ["a2"]),
        ([wanted("a", 2, *A, tasks=50), wanted("b", 1, least=1)], ["a2"]),
        # No model has a surplus.
        ([wanted("a", 2, *A, least=2), wanted("b", 1, least=1)], []),
        ([wanted("a", 1, A[0], least=1), wanted("c", 1, C1, least=1), wanted("b", 1, least=1)], []),
        # It has work and no worker: the model with two workers, or an idle one, gives one.
        ([wanted("a", 2, *A, tasks=50), wanted("b", 1, tasks=1)], ["a2"]),
        ([wanted("a", 1, A[0]), wanted("c", 1, C1, tasks=1), wanted("b", 1, tasks=1)], ["a1"]),
        # The only worker of a busy model stays.
        ([wanted("a", 1, A[0], tasks=1), wanted("c", 1, C1, tasks=1), wanted("b", 1, tasks=9)], []),
        # A worker that started recently is not drained.
        ([wanted("a", 2, *NEW), wanted("b", 1, tasks=1)], []),
        # The busy model gets a worker of the idle one if that is worth a cold start ...
        ([wanted("a", 1, A[0], tasks=50), wanted("b", 1, B1)], []),
        ([wanted("a", 2, A[0], tasks=50), wanted("b", 1, B1)], ["b1"]),
        ([wanted("a", 2, A[0], tasks=1), wanted("b", 1, B1)], []),
        ([wanted("a", 2, A[0], tasks=8), wanted("b", 1, B1)], ["b1"]),
        ([wanted("a", 2, A[0], tasks=5), wanted("b", 1, B1)], []),
        # Of workers whose loss costs nothing, the one with the fewest tasks.
        (
            [
                wanted("a", 2, replica("a1", "sim:0", load=2), replica("a2", "sim:1", load=1), slots=THREE),
                wanted("c", 1, replica("c1", "sim:2"), slots=THREE),
                wanted("b", 1, tasks=1, slots=THREE),
            ],
            ["c1"],
        ),
        # ... but not if both are equally busy, or if the worker is younger than three cold starts.
        ([wanted("a", 2, A[0], tasks=50), wanted("b", 2, B1, tasks=45)], []),
        ([wanted("a", 2, A[0], tasks=50), wanted("b", 1, replica("b1", "sim:1", age=119))], []),
        # A model of unknown load gives no worker for a gain.
        (
            [wanted("a", 2, A[0], tasks=50, slots=THREE), wanted("b", 2, B1, B2, known=False, slots=THREE)],
            [],
        ),
        ([wanted("a", 2, A[0], tasks=50), wanted("b", 1, B1, known=False)], []),
        # A model in a crash back-off takes no device, because it may not start.
        ([wanted("a", 2, *A), wanted("b", 1, tasks=1, retry_at=NOW + 5)], []),
        # Both workers of a GPU are drained for a large one.
        ([*SMALL, wanted("b", 1, tasks=1)], ["a1", "c1"]),
        ([*SMALL, wanted("b", 1, tasks=1, need=12)], ["a1"]),
        # A loading worker does no work yet, but it may be a model's only one.
        ([wanted("a", 2, A[0], LOADING, tasks=5), wanted("b", 1, least=1, slots=("sim:0",))], []),
        ([wanted("a", 2, A[0], LOADING), wanted("b", 1, least=1, slots=("sim:0",))], ["a1"]),
        ([wanted("a", 1, LOADING, tasks=5), wanted("b", 1, least=1, slots=("sim:1",))], []),
        # The loss of the other model is larger.
        ([wanted("a", 2, A[0], tasks=50, slots=THREE), wanted("b", 2, B1, B2, tasks=90, slots=THREE)], []),
        ([wanted("a", 2, A[0], tasks=90, slots=THREE), wanted("b", 2, B1, B2, tasks=9, slots=THREE)], ["b2"]),
        # A worker is draining already.
        ([wanted("a", 1, *GOING), wanted("b", 1, tasks=1)], []),
    ],
)
def test_swap_selects_the_cheapest_workers(models: list[ModelDemand], gone: list[str]) -> None:
    assert drained(plan(*models)) == gone


def test_swap_has_reason_and_reserves_its_device() -> None:
    before = plan(wanted("a", 2, *A, tasks=50), wanted("b", 1, tasks=1))
    [swap] = before.swaps
    assert (swap.taker, swap.giver, swap.device) == ("b", "a", "sim:1")
    assert swap.reason == "swap: b has work and no worker"
    assert reasons(before) == {
        "a": "1 more wanted, but no GPU has 24.0 GiB free: the largest free amount is 0.0 GiB on sim:0",
        "b": "1 more wanted: waiting for a2 to leave sim:1",
    }
    leaving = replica("a2", "sim:1", stage=Stage.DRAINING)
    assert plan(wanted("a", 2, A[0], leaving, tasks=50), wanted("b", 1, tasks=1)).actions == []
    after = plan(wanted("a", 2, A[0], tasks=50), wanted("b", 1, tasks=1))
    assert after.actions == [Start("b", "sim:1", "why")]
    # The giver cannot take its device back from the only worker of a busy model.
    come = Replica(WorkerProcess("b1", "b", "sim:1", 1, NOW - 500, None, NOW - 400), Stage.READY)
    assert plan(wanted("a", 2, A[0], tasks=50), wanted("b", 1, come, tasks=1)).actions == []


def test_swap_reason_has_gain_and_loss() -> None:
    [swap] = plan(wanted("a", 2, A[0], tasks=50), wanted("b", 1, replica("b1", "sim:1"))).swaps
    gain = waiting_saved(Load(250, 0, 5, 1, 10), 2, max(HORIZON_S, 160)) * (1 - 40 / 160)
    assert swap.reason == f"swap: another worker of a saves {gain:.2g} waiting tasks, this one saves 0"


def starts(planned: Plan) -> list[tuple[str, str]]:
    return [(a.model, a.device) for a in planned.actions if isinstance(a, Start)]


def test_free_devices_go_by_rank_then_by_saved_waiting() -> None:
    four = tuple(f"sim:{n}" for n in range(4))
    models = [
        wanted("a", 4, tasks=10, least=1, slots=four),
        wanted("b", 3, tasks=40, slots=four),
        wanted("c", 1, least=1, slots=four),
    ]
    devices = {name: Device(name, 24 * GIB) for name in four}
    planned = make_plan(models, NOW, devices)
    assert [model for model, _ in starts(planned)] == ["a", "c", "b", "b"]
    assert set(planned.blocked) == {"a", "b"}


def test_of_equally_calm_models_the_one_with_the_smaller_share_comes_first() -> None:
    few = wanted("a", 2, replica("a1", "sim:0"), slots=THREE)
    many = wanted("b", 4, replica("b1", "sim:1"), slots=THREE)
    assert starts(plan(few, many)) == [("b", "sim:2")]


def test_minimums_are_packed_tightly_if_required() -> None:
    small = [wanted(name, 1, least=1, need=8) for name in "abc"]
    # Spread over both GPUs, they would leave no room for the large worker.
    assert len(starts(plan(*small, wanted("d", 1, least=1, need=24)))) == 4
    assert len(starts(plan(*small))) == 3
    sizes = [wanted(name, 1, least=1, need=need) for name, need in zip("abcde", (5, 5, 4, 3, 3), strict=True)]
    assert len(starts(plan(*sizes, memory=10))) == 5
    there = [wanted(name, 1, replica(f"{name}1", "sim:0"), least=1, need=8) for name in "ab"]
    late = [wanted("c", 1, least=1, need=8), wanted("d", 1, least=1, need=20)]
    assert sorted(starts(plan(*there, *late))) == [("c", "sim:0"), ("d", "sim:1")]


@pytest.mark.parametrize(
    ("own", "memory", "faulty", "obstacle"),
    [
        (
            wanted("a", 1, need=30),
            24,
            [],
            "1 more wanted, but no GPU has 30.0 GiB free: the largest free amount is 24.0 GiB on sim:0",
        ),
        (
            wanted("a", 2, need=8, slots=("sim:0",)),
            24,
            [],
            "1 more wanted, but each GPU with room already has one of its workers (devices.share is false)",
        ),
        (
            wanted("a", 2, need=20),
            24,
            ["sim:1"],
            (
                "1 more wanted, but no GPU has 20.0 GiB free: the largest free amount is 4.0 GiB on sim:0; "
                "sim:1 is not used (broken)"
            ),
        ),
        (
            wanted("a", 1),
            24,
            ["sim:0", "sim:1"],
            "1 more wanted, but every device is taken; sim:0 is not used (broken); sim:1 is not used (broken)",
        ),
    ],
)
def test_blocked_reason_has_numbers(own: ModelDemand, memory: float, faulty: list[str], obstacle: str) -> None:
    assert reasons(plan(own, memory=memory, faulty=faulty)) == {"a": obstacle}


def test_swap_plans_giver_start_on_another_device() -> None:
    """After the execution of a plan, the next plan has no actions."""
    devices = {name: Device(name, memory * GIB) for name, memory in zip(THREE, (24, 24, 12), strict=True)}

    def planned(*more: Replica, a1: Stage = Stage.READY) -> Plan:
        replicas = (replica("a1", "sim:0", age=900, stage=a1), replica("a2", "sim:1", age=900), *more)
        small = wanted("a", 2, *replicas, least=1, need=4, slots=THREE)
        return make_plan([small, wanted("b", 1, need=24, tasks=40, slots=THREE)], NOW, devices)

    first = planned()
    assert (drained(first), starts(first)) == (["a1"], [("a", "sim:2")])
    assert planned(replica("a3", "sim:2", age=1, stage=Stage.STARTING), a1=Stage.DRAINING).actions == []


def test_idle_worker_is_moved_for_minimum_of_another_model() -> None:
    def lying(tasks: int) -> list[ModelDemand]:
        there = [wanted("a", 1, A[0], least=1, need=8, tasks=1), wanted("c", 1, C1, least=1, need=8, tasks=tasks)]
        return [*there, wanted("b", 1, least=1, need=20)]

    assert plan(*lying(1)).swaps == [], "both have work"
    assert plan(*lying(0)[:2], wanted("b", 1, need=20, tasks=9)).swaps == [], "only for its minimum"
    moved = plan(*lying(0))
    [swap] = moved.swaps
    assert (swap.worker, swap.device) == ("c1", "sim:1")
    assert starts(moved) == [("c", "sim:0")], "its new place is taken in the same plan"
    # After its exit each worker has its device.
    there = [wanted("a", 1, A[0], least=1, need=8, tasks=1), wanted("c", 1, least=1, need=8)]
    assert sorted(starts(plan(*there, wanted("b", 1, least=1, need=20)))) == [("b", "sim:1"), ("c", "sim:0")]


def test_the_only_serving_worker_of_a_busy_model_is_not_moved() -> None:
    loading = replica("c2", "sim:1", age=20, stage=Stage.STARTING)
    models = [
        wanted("c", 2, replica("c1", "sim:0"), loading, least=2, need=8, tasks=5, slots=THREE),
        wanted("a", 1, replica("a1", "sim:2"), least=1, need=12, tasks=5, slots=THREE),
        wanted("b", 1, least=1, need=20, slots=THREE),
    ]
    assert drained(plan(*models)) == ["c2"]


@pytest.mark.parametrize(("workers", "tasks", "started"), [(0, 1, 1), (1, 1, 0), (0, 0, 0)])
def test_only_a_first_worker_of_unknown_need_shares_a_device(workers: int, tasks: int, started: int) -> None:
    there = [replica(f"b{number}", "sim:1") for number in range(workers)]
    unknown = replace(wanted("b", workers + 1, *there, tasks=tasks, slots=("sim:0",)), need=None)
    assert len(starts(plan(wanted("a", 1, A[0], least=1, need=8), unknown))) == started
