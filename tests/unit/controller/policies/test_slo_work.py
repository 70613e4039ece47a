"""Policy `slo_work`: workers for a rate and a backlog, stabilization, and the feedback of the margin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.scaling import Scaling
from controller.policies.queueing import ArrivalHistory, DispersionIndex
from controller.policies.replay import begin
from controller.policies.replay_choice import ReplayMemory
from controller.policies.slo_work import PastDecision, SloWorkMemory, decide
from controller.types import Observation, Queue, Replica, Stage, WorkerLimits
from host.types import WorkerProcess
from wire.snapshot import ArrivalBucket

LIMITS = WorkerLimits(min_workers=1, max_workers=8, start_timeout_s=60, drain_timeout_s=60, lost_after_s=10)
SCALING = Scaling(policy="slo_work", drain_s=20, look_back_period_s=90)
#: A long history of one task of 4 s per second, without a queue. The number of requests adds nothing to the margin.
STEADY = Queue(0, 4, 1, 1.0, 8.0, 4.0, 90, 900, started_total=10**12, uptime_s=5000.0)
CALM = replace(STEADY, running=0, backlog_work_s=0.0, arrivals_short_window=0, arrivals_long_window=0)
QUIET: dict[str, Any] = {"queued": 9, "backlog_work_s": 30.0, "arrivals_short_window": 0, "arrivals_long_window": 0}


def observe(queue: Queue | None, ready: int, starting: int = 0, draining: int = 0, owed: int = 0) -> Observation:
    stages = [Stage.READY] * ready + [Stage.STARTING] * starting + [Stage.DRAINING] * draining
    replicas = [Replica(WorkerProcess(f"w{i}", "m", f"sim:{i}", i, 0.0), stage) for i, stage in enumerate(stages)]
    return Observation("m", queue, replicas, owed, cold_start_s=40.0)


def scaling(**given: Any) -> Scaling:
    return Scaling.model_validate({"policy": "slo_work", "drain_s": 20, "look_back_period_s": 90} | given)


@pytest.mark.parametrize(
    ("changes", "ready", "starting", "n_rate", "n_backlog", "desired"),
    [
        ({}, 5, 0, 5, 0, 5),
        ({}, 1, 0, 5, 0, 5),
        # A starting worker counts once.
        ({}, 3, 2, 5, 0, 5),
        ({}, 2, 2, 5, 0, 5),
        # The long-term rate has a margin, the recent rate has none; the larger one counts.
        ({"arrivals_short_window": 0}, 1, 0, 5, 0, 5),
        ({"arrivals_short_window": 180}, 1, 0, 9, 0, 8),
        ({"mean_work_s": 0.4}, 1, 0, 1, 0, 1),
        # Batches of four, each task twice as slow.
        ({"batch_cap": 4, "batch_slowdown": 2.0}, 1, 0, 3, 0, 3),
        # Until 20 s after another start, 3 workers do 180 s of work: 120 s are queued, 240 s arrive.
        ({"queued": 30, "backlog_work_s": 120.0}, 3, 0, 5, 12, 8),
        # A backlog that is done in time needs no more workers, and does not prevent a scale-down.
        ({"queued": 3, "backlog_work_s": 20.0}, 8, 0, 5, 0, 6),
        (QUIET, 2, 0, 1, 0, 1),
        # No scale-down while a task is late.
        (
            {
                "queued": 9,
                "backlog_work_s": 30.0,
                "arrivals_short_window": 0,
                "arrivals_long_window": 0,
                "oldest_wait_s": 11.0,
            },
            2,
            0,
            1,
            2,
            2,
        ),
    ],
)
def test_single_decision(
    changes: dict[str, Any], ready: int, starting: int, n_rate: int, n_backlog: int, desired: int
) -> None:
    observation = observe(replace(STEADY, **changes), ready, starting)
    decision, _ = decide(observation, SCALING, LIMITS, SloWorkMemory(-0.3), 30.0)
    assert (decision.inputs["n_rate"], decision.inputs["n_backlog"]) == (n_rate, n_backlog)
    assert (decision.desired, decision.valid) == (desired, True)
    assert decision.inputs.keys() == {
        "arrival_rate",
        "mean_work_s",
        "backlog_work_s",
        "n_rate",
        "n_keep",
        "n_backlog",
        "headroom_z",
        "burstiness",
        "work_variation",
        "floor",
        "hold_s",
    }
    assert decision.reason


@pytest.mark.parametrize(
    ("have", "desired"),
    [(1, 5), (4, 5), (5, 5), (6, 6), (7, 6), (8, 6)],
)
def test_a_worker_is_removed_later_than_it_is_added(have: int, desired: int) -> None:
    decision, _ = decide(observe(STEADY, have), SCALING, LIMITS, SloWorkMemory(-0.3), 30.0)
    assert (decision.desired, decision.inputs["n_rate"], decision.inputs["n_keep"]) == (desired, 5, 6)
    assert decision.reason == "5 for the arrivals" + (", 6 not to remove one too early" if desired == 6 else "")


def inputs_at(z: float) -> tuple[float, float]:
    """Return the workers for adding and for removing at this margin."""
    queue = replace(STEADY, arrivals_short_window=900, arrivals_long_window=9000)
    wide = replace(LIMITS, max_workers=200)
    inputs = decide(observe(queue, 5), SCALING, wide, SloWorkMemory(z - 1.5), 30.0)[0].inputs
    return inputs["n_rate"], inputs["n_keep"]


def test_workers_are_kept_for_a_margin_that_is_larger_by_six_tenths() -> None:
    margins = [number / 10 for number in range(-20, 40)]
    kept, added = zip(*((inputs_at(z)[1], inputs_at(z + 0.6)[0]) for z in margins), strict=True)
    assert kept == added
    assert len(set(kept)) > 3, "it depends on the margin"


@pytest.mark.parametrize(
    ("squares", "burstiness", "variation"),
    [(30.0, 0.3, 0.0), (50.0, 1.0, 1.0), (120.0, 1.2, 1.0)],
)
def test_variation_below_that_of_chance_counts_for_regular_arrivals_only(
    squares: float, burstiness: float, variation: float
) -> None:
    constant = [ArrivalBucket(4900 + number, 1, 4.0, 4.0) for number in range(40)]
    memory = SloWorkMemory(-0.3, counts=DispersionIndex(squares=squares))
    decision, _ = decide(observe(replace(STEADY, recent_arrivals=constant), 5), SCALING, LIMITS, memory, 30.0)
    assert decision.inputs["burstiness"] == pytest.approx(burstiness)
    assert decision.inputs["work_variation"] == pytest.approx(variation, abs=1e-9)


@pytest.mark.parametrize(("recent", "at_max"), [(90, False), (180, True)])
def test_a_wish_above_max_workers_is_remembered(recent: int, at_max: bool) -> None:
    _, memory = decide(
        observe(replace(STEADY, arrivals_short_window=recent), 5), SCALING, LIMITS, SloWorkMemory(-0.3), 30.0
    )
    assert memory.at_max is at_max


def test_decisions_are_kept_for_the_longest_hold() -> None:
    memory = learnt()
    for now in (0.0, 900.0, 1799.0, 1800.0):
        _, memory = decide(observe(STEADY, 5), SCALING, LIMITS, memory, now)
    assert [past.at for past in memory.decisions] == [900.0, 1799.0, 1800.0]


@pytest.mark.parametrize(("squares", "n_rate"), [(100.0, 5), (200.0, 6), (900.0, 7)])
def test_bursty_arrivals_need_more_workers(squares: float, n_rate: int) -> None:
    decision, _ = decide(
        observe(STEADY, 5), SCALING, LIMITS, SloWorkMemory(-0.3, counts=DispersionIndex(squares=squares)), 30.0
    )
    assert decision.inputs["n_rate"] == n_rate
    assert decision.inputs["burstiness"] == squares / 100


def test_missing_data_is_invalid_and_keeps_the_state() -> None:
    before = SloWorkMemory(z_offset=0.5, dispatched=100, late=3)
    decision, memory = decide(observe(None, 3), SCALING, LIMITS, before, 30.0)
    assert (decision.desired, decision.valid) == (3, False)
    assert memory == before


@pytest.mark.parametrize(("queued", "ready", "desired"), [(0, 2, 2), (500, 2, 2), (500, 0, 1), (500, 9, 8)])
def test_unmeasured_steps_keep_the_number(queued: int, ready: int, desired: int) -> None:
    unknown = replace(STEADY, queued=queued, backlog_work_s=None, mean_work_s=None)
    decision, _ = decide(observe(unknown, ready), SCALING, LIMITS, SloWorkMemory(), 30.0)
    assert (decision.desired, decision.valid) == (desired, True)
    assert "no step was measured" in decision.reason


def learnt(**given: Any) -> SloWorkMemory:
    """Return the state of a policy that has learnt that the normal hold is enough."""
    return SloWorkMemory(
        -1.5, served=10**6, replays=ReplayMemory((begin(60.0, 0, 5, 1, 5000.0),), second=4999), **given
    )


@pytest.mark.parametrize(("cold_start_s", "hold_s"), [(40.0, 60.0), (5.0, 60.0), (90.0, 90.0)])
def test_scale_down_waits_for_a_start_or_a_minute(cold_start_s: float, hold_s: float) -> None:
    memory = learnt()
    history = {0.0: STEADY, 10.0: CALM, 20.0: CALM, hold_s - 1: CALM, hold_s: CALM}
    desired = []
    for now, queue in history.items():
        observation = replace(observe(queue, 5), cold_start_s=cold_start_s)
        decision, memory = decide(observation, SCALING, LIMITS, memory, now)
        desired.append(decision.desired)
    assert desired == [5, 5, 5, 5, 1]


def test_scale_down_of_a_very_busy_model_waits_for_two_minutes() -> None:
    memory, desired, limits = SloWorkMemory(-1.5, served=10**6), [], replace(LIMITS, max_workers=600)
    for now in (0.0, 30.0, 60.0, 90.0, 119.0, 120.0):
        uptime_s, rate = 5000.0 + now, 60 if now else 80
        buckets = [ArrivalBucket(int(uptime_s) - second, 60, 240.0, 4.0) for second in range(120, 0, -1)]
        queue = replace(
            STEADY,
            arrivals_short_window=90 * rate,
            arrivals_long_window=900 * 60,
            uptime_s=uptime_s,
            recent_arrivals=buckets,
        )
        decision, memory = decide(observe(queue, 330), SCALING, limits, memory, now)
        desired.append(decision.desired)
    assert memory.replays.replays == ()
    assert desired[:5] == [321] * 5, "80 tasks of 4 s per second"
    assert desired[5] < 270, "60 of them"


def test_new_controller_keeps_existing_workers_at_first() -> None:
    first, memory = decide(observe(CALM, 4), SCALING, LIMITS, None, 100.0)
    soon, memory = decide(observe(CALM, 4), SCALING, LIMITS, memory, 141.0)
    later, _ = decide(observe(CALM, 4), SCALING, LIMITS, memory, 701.0)
    assert (first.desired, soon.desired, later.desired) == (4, 4, 1), "it holds them longer until it has learnt"


@pytest.mark.parametrize(
    ("uptime_s", "ready", "initial", "desired"),
    [(0.0, 0, 3, 3), (299.0, 5, 3, 5), (299.0, 5, None, 5), (300.0, 5, 3, 1)],
)
def test_no_scale_down_within_startup_hold(uptime_s: float, ready: int, initial: int | None, desired: int) -> None:
    new_queue = replace(CALM, uptime_s=uptime_s)
    settings = scaling(initial_workers=initial)
    # The scale-down window has passed: only the startup hold is left.
    memory = None if not ready else SloWorkMemory(decisions=(PastDecision(-5.0, ready, 1, ready),))
    decision, memory = decide(observe(new_queue, ready), settings, LIMITS, memory, 100.0)
    assert decision.desired == desired


def test_restarted_balancer_starts_no_worker() -> None:
    past = tuple(PastDecision(100.0 * number, 8 - number, 2, 8 - number) for number in range(6))
    decision, _ = decide(observe(replace(CALM, uptime_s=1.0), 3), SCALING, LIMITS, SloWorkMemory(decisions=past), 600.0)
    assert decision.desired == 3, "it keeps the present number, not an earlier one"


def test_initial_workers_are_kept_while_they_start() -> None:
    new_queue = replace(CALM, uptime_s=1.0)
    settings, memory = scaling(initial_workers=3), None
    for now, starting in ((0.0, 0), (30.0, 3), (60.0, 2), (90.0, 3)):
        decision, memory = decide(observe(new_queue, 0, starting), settings, LIMITS, memory, now)
        assert decision.desired == 3, now


@pytest.mark.parametrize(
    ("started", "late", "z"),
    [
        (0, 0, 1.0),
        (100, 0, 0.9925),  # each task in time lowers it by gain times the allowed fraction
        (100, 1, 1.0025),
        (400, 3, 1.0),  # exactly the allowed fraction
        (100, 100, 1.9925),
        # More count as 100 between two decisions.
        (600, 300, 1.4925),
        (1_000_000, 0, 0.9925),
        (1_000_000, 500_000, 1.4925),
    ],
)
def test_margin_follows_the_late_fraction(started: int, late: int, z: float) -> None:
    fixed = scaling(feedback={"gain": 0.01, "violation_target": 0.0075}, behavior=NO_REPLAYS)
    queue = replace(STEADY, started_total=1000 + started, started_late_total=10 + late)
    _, memory = decide(observe(queue, 6), fixed, LIMITS, SloWorkMemory(-0.5, dispatched=1000, late=10), 30.0)
    assert memory.z_offset == pytest.approx(z - 1.5)


def test_task_that_ended_without_a_start_is_as_late_as_one_that_started_late() -> None:
    settings, memory = scaling(behavior=NO_REPLAYS), SloWorkMemory(-0.5, dispatched=1010, late=20, served=1010)
    found = []
    for started_late, unstarted in ((60, 0), (10, 50), (30, 30)):
        queue = replace(STEADY, started_total=1400 - unstarted, started_late_total=started_late)
        queue = replace(queue, unstarted_late_total=unstarted)
        found.append(decide(observe(queue, 6), settings, LIMITS, memory, 30.0)[1])
    assert found[0] == found[1] == found[2]
    assert found[0].z_offset == pytest.approx(-0.5 + 0.01 * 100 / 390 * (40 - 2.925))
    assert found[0].served == 1400


@pytest.mark.parametrize(
    ("percentile", "target", "violations"), [(99.0, "auto", 0.0075), (95.0, "auto", 0.0375), (99.0, 0.009, 0.009)]
)
def test_margin_settles_below_the_allowed_late_fraction(
    percentile: float, target: float | str, violations: float
) -> None:
    settings = scaling(
        slo={"percentile": percentile}, feedback={"gain": 0.01, "violation_target": target}, behavior=NO_REPLAYS
    )
    queue = replace(STEADY, started_total=1300, started_late_total=10)
    _, memory = decide(observe(queue, 6), settings, LIMITS, SloWorkMemory(-0.5, dispatched=1000, late=10), 30.0)
    assert -0.5 - memory.z_offset == pytest.approx(0.01 * 100 * violations), "none of 300 was late"


@pytest.mark.parametrize(("before", "late", "z"), [(4.9, 300, 5.0), (-19.999, 0, -20.0)])
def test_margin_has_bounds(before: float, late: int, z: float) -> None:
    fixed = scaling(feedback={"gain": 0.01, "violation_target": 0.0075}, behavior=NO_REPLAYS)
    queue = replace(STEADY, started_total=1300, started_late_total=10 + late)
    _, memory = decide(observe(queue, 6), fixed, LIMITS, SloWorkMemory(before - 1.5, dispatched=1000, late=10), 30.0)
    assert memory.z_offset == pytest.approx(z - 1.5)


@pytest.mark.parametrize(
    ("percentile", "raised_by"),
    [(90.0, 0.01), (99.0, 0.01), (99.5, 0.02), (99.9, 0.1)],
)
def test_rare_late_requests_count_for_more(percentile: float, raised_by: float) -> None:
    settings = scaling(slo={"percentile": percentile}, behavior=NO_REPLAYS)
    queue = replace(STEADY, started_total=1001, started_late_total=11)
    _, memory = decide(observe(queue, 6), settings, LIMITS, SloWorkMemory(-0.5, dispatched=1000, late=10), 30.0)
    assert memory.z_offset + 0.5 == pytest.approx(raised_by, rel=0.1)


@pytest.mark.parametrize(
    ("served", "history", "z"),
    [
        (0, ArrivalHistory(), 1.7),
        (100, ArrivalHistory(), 1.35),
        (300, ArrivalHistory(), 1.175),
        (10**12, ArrivalHistory(), 1.0),
        # Rare requests: 1200 s count as 100.
        (0, ArrivalHistory(11.9, 1200.0), 1.35),
        (0, ArrivalHistory(12.1, 1200.0), 1.7),
        (100, ArrivalHistory(1.0, 2400.0), 1.175),
    ],
)
def test_little_experience_raises_the_margin(served: int, history: ArrivalHistory, z: float) -> None:
    queue, replays = replace(STEADY, started_total=0), ReplayMemory(second=4999, history=history)
    decision, _ = decide(observe(queue, 6), SCALING, LIMITS, SloWorkMemory(-0.5, served=served, replays=replays), 30)
    assert decision.inputs["headroom_z"] == pytest.approx(z)


def test_experience_is_kept_when_the_balancer_restarts() -> None:
    memory = None
    for started_total in (0, 400, 700, 50, 80):
        queue = replace(STEADY, started_total=started_total)
        _, memory = decide(observe(queue, 6), SCALING, LIMITS, memory, 30.0)
    assert memory is not None
    assert memory.served == 780


@pytest.mark.parametrize(("cold_start_s", "z"), [(5.0, 0.0), (40.0, 1.5), (400.0, 2.3), (12.6, 1.1)])
def test_margin_begins_higher_the_longer_a_start_takes(cold_start_s: float, z: float) -> None:
    observation = replace(observe(STEADY, 6), cold_start_s=cold_start_s)
    decision, _ = decide(observation, SCALING, LIMITS, SloWorkMemory(served=10**12), 30)
    assert decision.inputs["headroom_z"] == pytest.approx(z, abs=0.01)


def test_low_margin_clears_a_backlog_more_slowly() -> None:
    late = replace(STEADY, queued=30, backlog_work_s=120.0, oldest_wait_s=11.0)
    wide = replace(LIMITS, max_workers=99)
    wanted = [
        decide(observe(late, 3), SCALING, wide, SloWorkMemory(z - 1.5), 30.0)[0].inputs["n_backlog"]
        for z in (5.0, -1.0, -2.0, -5.0, -20.0)
    ]
    # Until 20 s after a start, 360 s of work and 180 s done: 9 more. With twice the time, 440 s and 300 s: 5 more.
    assert wanted[:2] == [12, 12]
    assert wanted == sorted(wanted, reverse=True)
    assert wanted[-1] < wanted[2] < 12


@pytest.mark.parametrize(
    ("cold_start_s", "z_offset", "z"), [(40.0, 0.0, 1.5), (10.0, 0.0, 1.0184), (9.9, 0.0, 0.0), (9.9, 5.0, 5.0)]
)
def test_fast_start_lowers_the_initial_margin(cold_start_s: float, z_offset: float, z: float) -> None:
    observation = replace(observe(STEADY, 6), cold_start_s=cold_start_s)
    decision, _ = decide(observation, SCALING, LIMITS, SloWorkMemory(z_offset), 30.0)
    assert decision.inputs["headroom_z"] == pytest.approx(z, abs=1e-4)


@pytest.mark.parametrize(
    "memory",
    [
        SloWorkMemory(-0.5),  # no counters before
        SloWorkMemory(-0.5, dispatched=5000, late=10),  # the balancer has restarted
        SloWorkMemory(-0.5, dispatched=1000, late=990),
        SloWorkMemory(-0.5, dispatched=1000, late=10, at_max=True),  # at max_workers
        SloWorkMemory(-0.5, dispatched=1000, late=10, scaling_from_zero=True),  # they arrived while there was no worker
    ],
)
def test_margin_is_unchanged_without_alternative(memory: SloWorkMemory) -> None:
    queue = replace(STEADY, started_total=2000, started_late_total=510)
    _, after = decide(observe(queue, 6), SCALING, LIMITS, memory, 30.0)
    assert (after.z_offset, after.dispatched, after.late) == (-0.5, 2000, 510)


def test_waits_for_first_worker_do_not_change_margin() -> None:
    zero, memory = scaling(min_workers=0, behavior=NO_REPLAYS), SloWorkMemory(-0.5, dispatched=0)
    wide = replace(LIMITS, max_workers=99)
    steps = [
        (0, 0, 1, 5.0),  # one task waits without a worker
        (0, 0, 9, 35.0),
        (1, 1, 8, 41.0),  # the first worker is ready; the other tasks are late
        (1, 5, 4, 30.0),
        (1, 9, 0, 0.0),  # the backlog is cleared
    ]
    for number, (ready, late, queued, oldest) in enumerate(steps):
        queue = replace(STEADY, queued=queued, started_total=late, started_late_total=late, oldest_wait_s=oldest)
        _, memory = decide(observe(queue, ready, 1 - ready), zero, wide, memory, 30.0 * number)
        assert memory.z_offset == -0.5
    queue = replace(STEADY, started_total=10, started_late_total=10)
    _, memory = decide(observe(queue, 1), zero, wide, memory, 200.0)
    assert memory.z_offset > -0.5, "from then on it counts again"


@pytest.mark.parametrize(
    ("behavior", "steps", "desired"),
    [
        ({"scale_up": {"max_step": 2}}, [(0.0, STEADY, 1)], [3]),
        # A triggered decision in between does not add to the limit per interval.
        ({"scale_up": {"max_step": 2}}, [(0.0, STEADY, 1), (5.0, STEADY, 3), (30.0, STEADY, 3)], [3, 3, 5]),
        (
            {"scale_up": {"stabilization_window_s": 40}},
            [(0.0, CALM, 1), (30.0, STEADY, 1), (60.0, STEADY, 1)],
            [1, 1, 5],
        ),
        (
            {"scale_down": {"stabilization_window_s": 0, "max_step": 2}},
            [(0.0, CALM, 6), (30.0, CALM, 4), (40.0, CALM, 2), (60.0, CALM, 2)],
            [4, 2, 2, 1],
        ),
        ({"scale_down": {"stabilization_window_s": 0}}, [(0.0, CALM, 6)], [1]),
        (
            {"scale_down": {"stabilization_window_s": 100}},
            [(0.0, STEADY, 5), (60.0, CALM, 5), (101.0, CALM, 5)],
            [5, 5, 1],
        ),
    ],
)
def test_behavior_limits_each_direction(
    behavior: dict[str, Any], steps: list[tuple[float, Queue, int]], desired: list[int]
) -> None:
    settings, memory, decided = scaling(behavior=behavior), SloWorkMemory(-0.5), []
    for now, queue, ready in steps:
        decision, memory = decide(observe(queue, ready), settings, LIMITS, memory, now)
        decided.append(decision.desired)
    assert decided == desired


def test_memory_moves_to_another_clock() -> None:
    memory = SloWorkMemory(
        0.5,
        10,
        1,
        decisions=(PastDecision(100.0, 4, 3, 4), PastDecision(130.0, 4, 2, 4)),
        counts=DispersionIndex(100.0, 7),
    )
    assert memory.shifted(-130.0).decisions == (PastDecision(-30.0, 4, 3, 4), PastDecision(0.0, 4, 2, 4))
    assert memory.shifted(-130.0).counts == DispersionIndex(-30.0, 7)
    assert memory.shifted(-130.0).shifted(130.0) == memory


@given(
    st.lists(
        st.tuples(st.floats(0.1, 100), st.one_of(st.none(), st.integers(0, 500)), st.integers(0, 300)), max_size=50
    ),
    st.integers(1, 3),
    st.integers(3, 8),
)
def test_any_history_keeps_number_in_bounds(
    history: list[tuple[float, int | None, int]], min_workers: int, max_workers: int
) -> None:
    limits = WorkerLimits(min_workers, max_workers, 60, 60, 10)
    workers, memory, now, late = min_workers, None, 0.0, 0
    for seconds, tasks, recent in history:
        now += seconds
        late += recent
        queue = (
            None
            if tasks is None
            else Queue(tasks, 1, 2, 1.5, 4.0 * tasks, 4.0, recent, 2 * recent, 2 * late, late, uptime_s=now)
        )
        decision, memory = decide(observe(queue, workers), SCALING, limits, memory, now)
        assert min_workers <= decision.desired <= max_workers
        assert decision.valid == (tasks is not None)
        assert decision.inputs == {} or -20 <= decision.inputs["headroom_z"] <= 5
        if now < SCALING.startup_hold_s:
            assert decision.desired >= workers, "no worker goes on an empty history"
        workers = decision.desired


#: An explicit window turns replays off.
NO_REPLAYS = {"scale_down": {"stabilization_window_s": 60}}


def replayed(selected: int, *, new_late: int = 0) -> ReplayMemory:
    """Return a memory of old replays: the normal setting, and at least 6 workers."""
    normal, floor = begin(60.0, 0, 6, 1, 5000.0), begin(60.0, 6, 6, 1, 5000.0)
    both = (replace(normal, late=400.0, new_late=new_late), replace(floor, new_late=new_late))
    return ReplayMemory(both, selected, second=4999, age_s=1e5, total=1000.0, recent_total=1000.0)


def test_learnt_least_number_is_kept_and_explained() -> None:
    decision, _ = decide(observe(CALM, 6), SCALING, LIMITS, SloWorkMemory(-0.5, replays=replayed(1)), 30.0)
    assert (decision.desired, decision.inputs["floor"]) == (6, 6)
    assert "at least 6 by a replay of the recent arrivals" in decision.reason
    kept, _ = decide(observe(STEADY, 6), SCALING, LIMITS, SloWorkMemory(-0.3, replays=replayed(1)), 30.0)
    assert kept.reason == "5 for the arrivals, 6 not to remove one too early", "the replay asks for no more"


@pytest.mark.parametrize(("selected", "is_step"), [(0, True), (1, False)])
def test_a_learnt_least_number_has_the_room_for_bunches(selected: int, is_step: bool) -> None:
    bunch = [ArrivalBucket(4998, 40, 160.0, 4.0)]
    queue = replace(STEADY, queued=40, backlog_work_s=160.0, recent_arrivals=bunch)
    wide = replace(LIMITS, max_workers=99)
    memory = SloWorkMemory(-0.5, replays=replayed(selected))
    decision, _ = decide(observe(queue, 6), SCALING, wide, memory, 30.0)
    assert (decision.inputs["n_backlog"] > 20) is is_step


@pytest.mark.parametrize(("ready", "initial", "workers"), [(0, 6, 6), (1, 6, 6), (7, 6, 7), (1, None, 1), (0, 20, 8)])
def test_replays_begin_with_the_workers_that_are_to_start(ready: int, initial: int | None, workers: int) -> None:
    _, memory = decide(observe(CALM, ready), scaling(initial_workers=initial), LIMITS, None, 0.0)
    assert [one.workers for one in memory.replays.replays if one.floor == 0] == [workers] * 3


def test_explicit_window_turns_the_replays_off() -> None:
    fixed = scaling(behavior={"scale_down": {"stabilization_window_s": 0}})
    late = replace(CALM, started_total=1100, started_late_total=60)
    before = SloWorkMemory(-0.5, dispatched=1000, late=10, replays=replayed(1, new_late=50))
    decision, memory = decide(observe(late, 6), fixed, LIMITS, before, 30.0)
    assert (decision.desired, decision.inputs["floor"], decision.inputs["hold_s"]) == (1, 0, 0)
    assert memory.z_offset > -0.5, "what was learnt before does not hold the margin"


def test_explicit_window_counts_each_arrival_once() -> None:
    fixed = scaling(behavior=NO_REPLAYS)
    queue = replace(STEADY, recent_arrivals=[ArrivalBucket(4990 + n, 1, 4.0, 4.0) for n in range(8)])
    memory = SloWorkMemory(-0.5)
    for now in (30.0, 60.0, 90.0):
        _, memory = decide(observe(queue, 6), fixed, LIMITS, memory, now)
    assert memory.replays.variation.count == 8


@pytest.mark.parametrize(("inevitable", "preventable"), [(0, 50), (30, 20), (50, 0), (80, 0)])
def test_requests_that_were_late_in_every_replay_could_not_be_prevented(inevitable: int, preventable: int) -> None:
    assert replayed(0, new_late=inevitable).preventable(50, 300.0) == preventable


@pytest.mark.parametrize(("bunch", "is_raised"), [(0, True), (100, False)])
def test_inevitable_lateness_does_not_raise_the_margin(bunch: int, is_raised: bool) -> None:
    arrivals = [ArrivalBucket(4970, bunch, 4.0 * bunch, 4.0)] if bunch else []
    late = replace(STEADY, started_total=1100, started_late_total=30, recent_arrivals=arrivals)
    served = tuple(replace(one, late=0.0, slots=(0.0,) * 6) for one in replayed(0).replays)
    replays = ReplayMemory(served, 0, second=4960, age_s=1e5, total=1e5, recent_total=1e5)
    memory = SloWorkMemory(-0.5, 1000, 10, replays=replays)
    _, memory = decide(observe(late, 6), SCALING, LIMITS, memory, 30.0)
    assert (memory.z_offset > -0.5) is is_raised


@pytest.mark.parametrize(("age_s", "counts"), [(60.0, False), (299.0, False), (301.0, True)])
def test_lateness_of_the_first_minutes_does_not_raise_the_margin(age_s: float, counts: bool) -> None:
    late = replace(STEADY, started_total=1100, started_late_total=60)
    replays = replace(replayed(0), age_s=age_s, second=int(STEADY.uptime_s))
    _, memory = decide(observe(late, 6), SCALING, LIMITS, SloWorkMemory(-0.5, 1000, 10, replays=replays), 30.0)
    assert (memory.z_offset > -0.5) == counts


@pytest.mark.parametrize(("works", "workers"), [([4.0] * 60, 5), ([1.0] * 57 + [61.0] * 3, 7)])
def test_uneven_work_needs_more_workers(works: list[float], workers: int) -> None:
    buckets = [ArrivalBucket(4900 + number, 1, work_s, work_s) for number, work_s in enumerate(works)]
    queue = replace(STEADY, recent_arrivals=buckets, mean_work_s=4.0)
    decision, _ = decide(observe(queue, 5), SCALING, LIMITS, SloWorkMemory(-0.3), 30.0)
    assert decision.inputs["n_rate"] == workers
