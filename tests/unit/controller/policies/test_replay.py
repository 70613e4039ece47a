"""Replays of recent arrivals: the simulated queue, and the choice of a hold and a least number of workers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.scaling import Scaling
from controller.policies.queueing import ArrivalHistory, BacklogInputs
from controller.policies.replay import Replay, ReplayStep, ReplayTask, advance, begin
from controller.policies.replay_choice import ReplayMemory, update
from controller.types import Observation, Queue, Replica, Stage, WorkerLimits
from host.types import WorkerProcess
from wire.snapshot import ArrivalBucket

LIMITS = WorkerLimits(1, 16, 60, 60, 10)
RULE = BacklogInputs(arriving=0.0, speed=1.0, max_wait_s=10.0, cold_start_s=40.0, drain_s=30.0)
STEP = ReplayStep(0.0, 30.0, (), 1, 1, 1, 1.0, 1, 16, RULE, RULE, 1.0, 1.0, may_shrink=True)


def step(**changes: Any) -> ReplayStep:
    return STEP._replace(**changes)


@pytest.mark.parametrize(
    ("workers", "late"),
    # 30 tasks of 4 s at once: a worker begins those at 0, 4 and 8 s in time.
    [(1, 5), (5, 15), (9, 3), (10, 0), (12, 0)],
)
def test_late_tasks_of_a_bunch(workers: int, late: int) -> None:
    tasks = [ReplayTask(0.0, 4.0, 1)] * 30
    after = advance(begin(60.0, workers, workers, 1, 0.0), step(tasks=tasks))
    assert after.late == after.new_late == late if workers > 1 else after.late >= late
    assert after.workers >= workers


@pytest.mark.parametrize(
    ("arrivals", "late"),
    [
        # The first task runs alone and ends at 10 s, though a full batch of two takes twice as long.
        ((0.0, 1.0, 5.0), 0),
        # The second one then begins in a full batch, and ends at 21 s: the fourth waits from 6 s on.
        ((0.0, 1.0, 5.0, 6.0), 1),
        ((0.0, 11.0, 22.0, 23.0), 0),
    ],
)
def test_batch_that_is_not_full_is_faster(arrivals: tuple[float, ...], late: int) -> None:
    tasks = [ReplayTask(at, 10.0, 1) for at in arrivals]
    after = advance(begin(60.0, 0, 1, 2, 0.0), step(tasks=tasks, batch=2, slowdown=2.0, max_workers=1))
    assert after.late == late


def test_a_task_that_waits_for_just_the_allowed_time_is_not_late() -> None:
    tasks = [ReplayTask(0.0, 5.0, 1)] * 4
    assert advance(begin(60.0, 0, 1, 1, 0.0), step(tasks=tasks, max_workers=1)).late == 1, (
        "they begin at 0, 5, 10, 15 s"
    )


def test_a_long_queue_is_cut() -> None:
    tasks = [ReplayTask(0.0, 100.0, 2)] * 3011
    after = advance(begin(60.0, 0, 1, 1, 0.0), step(tasks=tasks, max_workers=1))
    assert (len(after.waiting), after.late) == (3000, 20), "the oldest leave, and count as late"


def test_a_running_task_moves_when_its_place_goes() -> None:
    after = advance(replace(begin(60.0, 0, 2, 1, 0.0), slots=(50.0, 100.0)), step())
    assert (after.workers, after.slots) == (1, (120.0,)), "20 s were left of the first task"


def test_loading_workers_go_first() -> None:
    loading = replace(begin(60.0, 0, 3, 1, 0.0), starting=(60.0, 60.0), slots=(0.0, 60.0, 60.0))
    assert len(advance(loading, step()).starting) <= 1


@pytest.mark.parametrize(
    ("busy_until", "batch", "slowdown"),
    [
        # A running task of 1000 s would not end earlier with more workers.
        ((1000.0,), 1, 1.0),
        # Eight tasks that run eight times slower than alone are 30 s of work.
        ((240.0,) * 8, 8, 8.0),
    ],
)
def test_running_tasks_order_no_workers(busy_until: tuple[float, ...], batch: int, slowdown: float) -> None:
    busy = replace(begin(60.0, 0, 1, batch, 0.0), slots=busy_until)
    after = advance(busy, step(tasks=[ReplayTask(0.0, 1.0, 1)], batch=batch, slowdown=slowdown))
    assert (after.starts, len(after.waiting)) == (0, 1)


def test_no_worker_is_ordered_before_the_present_ones_would_be_late() -> None:
    busy = replace(begin(60.0, 0, 1, 1, 0.0), slots=(12.0,))
    task, many = ReplayTask(0.0, 1.0, 1), RULE._replace(arriving=4.0)
    assert advance(busy, step(tasks=[task], backlog=many)).starts == 0, "the task begins at 12 s, and none follows"
    assert advance(busy, step(tasks=[task, ReplayTask(4.0, 5.0, 1)], backlog=many)).starts > 0


@pytest.mark.parametrize(("floor", "is_ordered"), [(0, True), (1, False)])
def test_settings_with_a_floor_use_the_plain_rate(floor: int, is_ordered: bool) -> None:
    many = RULE._replace(arriving=4.0)
    tasks = [ReplayTask(0.0, 4.0, 1)] * 5
    after = advance(begin(60.0, floor, 1, 1, 0.0), step(tasks=tasks, backlog=many, plain_backlog=RULE))
    assert (after.starts > 0) is is_ordered


def test_loading_workers_have_no_work() -> None:
    rule = RULE._replace(cold_start_s=120.0)
    tasks = [ReplayTask(0.0, 4.0, 1)] * 90
    after = advance(begin(60.0, 0, 1, 1, 0.0), step(tasks=tasks, backlog=rule))
    again = advance(after, step(start_s=30.0, end_s=60.0, backlog=rule))
    assert after.starts > 0
    assert again.starts == after.starts, "the same backlog orders nothing more while the ordered workers load"


def test_normal_setting_orders_workers_for_a_backlog() -> None:
    after = advance(begin(60.0, 0, 1, 1, 0.0), step(tasks=[ReplayTask(0.0, 4.0, 1)] * 60))
    assert after.workers > 1
    assert after.starts == after.workers - 1
    assert all(40.0 <= ready <= 70.0 for ready in after.starting)


@pytest.mark.parametrize(("hold_s", "floor", "kept"), [(60.0, 0, 1), (600.0, 0, 5), (60.0, 3, 3)])
def test_workers_go_after_the_hold_down_to_the_floor(hold_s: float, floor: int, kept: int) -> None:
    one = advance(begin(hold_s, floor, 1, 1, 0.0), step(by_rate=5))
    for end_s in (60.0, 90.0, 120.0):
        one = advance(one, step(start_s=end_s - 30, end_s=end_s))
    assert one.workers == kept


def test_workers_go_down_to_those_to_keep_and_none_starts_for_them() -> None:
    many, few = begin(60.0, 0, 5, 1, 0.0), begin(60.0, 0, 1, 1, 0.0)
    for end_s in (60.0, 90.0, 120.0):
        many, few = (advance(one, step(start_s=end_s - 30, end_s=end_s, to_keep=3)) for one in (many, few))
    assert (many.workers, few.workers, few.starts) == (3, 1, 0)


def test_no_worker_goes_while_arrivals_are_unknown() -> None:
    one = begin(60.0, 0, 5, 1, 0.0)
    for end_s in (30.0, 60.0, 120.0):
        one = advance(one, step(start_s=end_s - 30, end_s=end_s, may_shrink=False))
    assert one.workers == 5


def test_places_follow_the_measured_batch() -> None:
    one = begin(60.0, 0, 5, 1, 0.0)
    for end_s, batch, by_rate, workers in ((30.0, 8, 5, 5), (60.0, 2, 5, 5), (150.0, 8, 1, 1), (180.0, 1, 1, 1)):
        one = advance(one, step(start_s=end_s - 30, end_s=end_s, batch=batch, by_rate=by_rate))
        assert (one.workers, len(one.slots)) == (workers, workers * batch)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0.01, 60), st.integers(0, 20), st.integers(1, 4)), max_size=20),
    st.sampled_from([60.0, 600.0]),
    st.integers(0, 8),
)
def test_replay_keeps_its_places_and_tasks(steps: list[tuple[int, float, int, int]], hold_s: float, floor: int) -> None:
    one, now, seconds = begin(hold_s, floor, 2, 1, 0.0), 0.0, 30.0
    for count, work_s, by_rate, batch in steps:
        tasks = [ReplayTask(now + 0.5, work_s, 1)] * count
        before, one = (
            one,
            advance(
                one, step(start_s=now, end_s=now + seconds, tasks=tasks, by_rate=by_rate, batch=batch, slowdown=1.5)
            ),
        )
        now += seconds
        assert len(one.slots) == one.workers * batch
        assert len(one.starting) <= one.workers
        assert 1 <= one.workers <= LIMITS.max_workers
        assert one.workers >= min(floor, LIMITS.max_workers)
        assert 0 <= one.new_late <= len(before.waiting) + count
        assert one.cost_s == pytest.approx(before.cost_s + before.workers * seconds)
    assert msgspec.json.decode(msgspec.json.encode(one), type=Replay) == one, "the state is saved as JSON"


def observation(now: float, buckets: list[ArrivalBucket], ready: int = 1) -> Observation:
    replicas = [Replica(WorkerProcess(f"w{i}", "m", f"sim:{i}", i, 0.0), Stage.READY) for i in range(ready)]
    queue = Queue(0, 0, 1, 1.0, 0.0, 4.0, 30, 300, uptime_s=now, recent_arrivals=buckets)
    return Observation("m", queue, replicas, cold_start_s=40.0)


def watch(bunch: int, period_s: int, hours: float, scaling: Scaling, by_rate: int = 1) -> ReplayMemory:
    """Return the memory after traffic of `bunch` tasks of 4 s every `period_s`."""
    memory = ReplayMemory()
    for now in range(0, int(hours * 3600), 30):
        starts = [at for at in range(max(now - 120, 0), now) if at % period_s == 0]
        buckets = [ArrivalBucket(at, bunch, 4.0 * bunch, 4.0) for at in starts]
        seen = observation(float(now), buckets)
        assert seen.queue is not None
        memory, new = memory.counted(seen.queue, 120.0)
        memory = update(memory, new, seen, seen.queue, scaling, LIMITS, by_rate, by_rate, seen.provisioned)
    return memory


def test_lockstep_bunches_get_the_workers_that_they_need() -> None:
    memory = watch(30, 90, 2.0, Scaling())
    assert memory.current.floor == 11, "the least listed number that begins 30 tasks of 4 s within 10 s"
    assert memory.preventable(3, 300.0) is None, "z is not moved by another setting"
    assert memory.variation.squared == pytest.approx(0.0, abs=1e-6)


def test_bunches_of_the_first_minutes_teach_a_floor() -> None:
    assert watch(30, 90, 0.08, Scaling()).current.floor == 0
    assert watch(30, 90, 0.1, Scaling()).current.floor >= 11, "a floor has its workers from the first bunch on"


def test_traffic_that_is_served_keeps_the_normal_setting() -> None:
    memory = watch(1, 12, 2.0, Scaling())
    assert (memory.current.floor, memory.current.hold_s, memory.selected) == (0, 60.0, 0)


def test_longer_hold_until_something_was_learnt() -> None:
    memory = watch(1, 12, 0.3, Scaling())
    assert (memory.current.floor, memory.current.hold_s) == (0, 600.0)
    assert memory.preventable(3, 300.0) == 3, "it still counts as the normal setting"


def test_startup_hold_tells_how_long_nothing_is_known() -> None:
    assert watch(1, 12, 0.3, Scaling(startup_hold_s=120.0)).current.hold_s == 60.0
    assert watch(1, 12, 0.05, Scaling(startup_hold_s=0.0)).current.hold_s == 60.0
    assert watch(30, 90, 0.06, Scaling(startup_hold_s=120.0)).current.floor >= 11


def test_late_percentile_needs_no_floor() -> None:
    lenient = Scaling.model_validate({"slo": {"percentile": 50}})
    assert watch(30, 90, 2.0, lenient).current.floor < watch(30, 90, 2.0, Scaling()).current.floor


def test_restarted_balancer_begins_new_replays() -> None:
    memory = watch(30, 90, 1.0, Scaling())
    queue = observation(5.0, []).queue
    assert queue is not None
    fresh, _ = memory.counted(queue, 120.0)
    assert (fresh.replays, fresh.second, fresh.variation) == ((), -1, memory.variation)
    assert fresh.history == memory.history.updated(0, 5.0)


def test_arrivals_of_the_present_second_wait() -> None:
    memory = ReplayMemory(second=97)
    buckets = [ArrivalBucket(second, 1, 1.0, 1.0) for second in (96, 97, 98, 99, 100)]
    queue = replace(Queue(0, 0, uptime_s=100.4), recent_arrivals=buckets)
    known, new = memory.counted(queue, 120.0)
    assert [bucket.second for bucket in new] == [98, 99]
    assert known.history == memory.history.updated(2, 2.0)


@pytest.mark.parametrize(("second", "counted_s"), [(-1, 120.0), (90, 9.0), (99, 0.0), (98, 1.0)])
def test_only_seconds_whose_arrivals_are_reported_are_counted(second: int, counted_s: float) -> None:
    queue = Queue(0, 0, uptime_s=100.4 if second >= 0 else 500.0)
    memory, _ = ReplayMemory(second=second).counted(queue, 120.0)
    assert memory.history == ArrivalHistory().updated(0, counted_s)


def update_at(now: float, memory: ReplayMemory, by_rate: int = 1, limits: WorkerLimits = LIMITS) -> ReplayMemory:
    """Return the memory after an update without arrivals."""
    seen = observation(now, [])
    assert seen.queue is not None
    return update(memory, [], seen, seen.queue, Scaling(), limits, by_rate, by_rate, seen.provisioned)


@pytest.mark.parametrize(
    ("limits", "floors"),
    [
        (LIMITS, [2, 3, 4, 6, 8, 11, 16]),
        (WorkerLimits(4, 10, 60, 60, 10), [6, 8]),
        (WorkerLimits(1, 1, 60, 60, 10), []),
    ],
)
def test_floors_are_those_within_the_bounds(limits: WorkerLimits, floors: list[int]) -> None:
    replays = update_at(100.0, ReplayMemory(), limits=limits).replays
    assert [(one.hold_s, one.floor) for one in replays[:3]] == [(60.0, 0), (600.0, 0), (1800.0, 0)]
    assert [(one.hold_s, one.floor) for one in replays[3:]] == [(60.0, floor) for floor in floors]


def test_floors_follow_the_bounds() -> None:
    small, large = replace(LIMITS, max_workers=3), replace(LIMITS, max_workers=6)
    memory = update_at(100.0, ReplayMemory(), limits=small)
    known = tuple(replace(one, late=float(number)) for number, one in enumerate(memory.replays))
    assert [one.floor for one in known] == [0, 0, 0, 2, 3]
    memory = update_at(100.0, replace(memory, replays=known), limits=large)
    assert [one.floor for one in memory.replays] == [0, 0, 0, 2, 3, 4, 6]
    assert [one.late for one in memory.replays] == [0, 1, 2, 3, 4, 4, 4], "the score of the next lower floor"
    assert [one.workers for one in memory.replays[3:]] == [2, 3, 4, 6]
    again = update_at(130.0, memory, limits=small)
    assert [one.floor for one in again.replays] == [0, 0, 0, 2, 3, 4, 6]
    none = update_at(100.0, ReplayMemory(), limits=replace(LIMITS, max_workers=1))
    assert [(one.hold_s, one.floor) for one in update_at(100.0, none, limits=small).replays[3:]] == [
        (60.0, 2),
        (60.0, 3),
    ]


def test_arrivals_within_a_long_gap_are_not_known() -> None:
    memory = ReplayMemory((begin(60.0, 0, 3, 1, 0.0),), second=99, age_s=1e5)
    [after] = update_at(30 * 86_400.0, memory, limits=replace(LIMITS, max_workers=1)).replays
    assert after.cost_s == 3 * 120


def test_scores_fade() -> None:
    one = replace(begin(60.0, 0, 1, 1, 0.0), late=100.0, recent_late=100.0, cost_s=1e5, starts=50.0)
    memory = ReplayMemory((one,), second=999, age_s=1e5, total=1000.0, recent_total=1000.0)
    for now in range(1000, 1001 + 4 * 3600, 100):
        memory = update_at(float(now), memory, limits=replace(LIMITS, max_workers=1))
    [after] = memory.replays
    for value, before, hours in (
        (after.late, 100.0, 4),
        (after.starts, 50.0, 4),
        (memory.total, 1000.0, 4),
        (after.recent_late, 100.0, 1),
        (memory.recent_total, 1000.0, 1),
    ):
        assert value == pytest.approx(before * math.exp(-4 / hours), rel=1e-3)
    assert memory.age_s == pytest.approx(1e5 + 4 * 3600)


@pytest.mark.parametrize(("now", "workers"), [(290.0, 5), (300.0, 1)])
def test_no_replayed_worker_goes_within_the_startup_hold(now: float, workers: int) -> None:
    memory = ReplayMemory((begin(60.0, 0, 5, 1, 0.0),), second=int(now) - 1, age_s=1e5)
    assert update_at(now, memory).replays[0].workers == workers


def scored(
    hold_s: float, floor: int, cost_s: float = 1000.0, late: float = 0.0, recent: float = 0.0, starts: float = 0.0
) -> Replay:
    return replace(
        begin(hold_s, floor, max(floor, 1), 1, 0.0), cost_s=cost_s, late=late, recent_late=recent, starts=starts
    )


#: 100 of 10,000 tasks may be late, and 10 of the 1000 in the last hour.
FAILING = scored(60.0, 0, late=500.0)
LATE = scored(60.0, 0, late=200.0)
HELD = scored(600.0, 0)


@pytest.mark.parametrize(
    ("replays", "selected", "age_s", "chosen"),
    [
        # The normal setting is used while it serves enough in time, and again once it does.
        ([scored(60.0, 0), HELD], 0, 1e5, 0),
        ([scored(60.0, 0), HELD], 1, 1e5, 0),
        # Between the limits the present setting stays.
        ([LATE, HELD], 0, 1e5, 0),
        ([LATE, HELD], 1, 1e5, 1),
        ([FAILING, HELD], 0, 1e5, 1),
        # It may fail in the last hour only.
        ([scored(60.0, 0, late=250.0, recent=150.0), HELD], 0, 1e5, 1),
        ([scored(60.0, 0, late=250.0, recent=80.0), HELD], 0, 1e5, 0),
        # The cheapest that keeps the promise, if it is clearly cheaper than the present one.
        ([FAILING, HELD, scored(60.0, 3, 950.0)], 1, 1e5, 1),
        ([FAILING, HELD, scored(60.0, 3, 900.0)], 1, 1e5, 2),
        ([FAILING, HELD, scored(60.0, 3, 950.0)], 0, 1e5, 2),
        ([FAILING, HELD, scored(60.0, 3, 900.0, late=95.0)], 1, 1e5, 1),
        ([FAILING, HELD, scored(60.0, 3, 900.0, recent=20.0)], 1, 1e5, 1),
        # A start counts as 30 s of a worker.
        ([FAILING, HELD, scored(60.0, 3, 900.0, starts=10.0)], 1, 1e5, 1),
        # If none keeps it, a late task counts as ten minutes of a worker.
        ([FAILING, scored(600.0, 0, late=200.0), scored(60.0, 3, 60_000.0, late=150.0)], 1, 1e5, 1),
        ([FAILING, scored(600.0, 0, late=200.0), scored(60.0, 3, 20_000.0, late=150.0)], 1, 1e5, 2),
        # Nothing changes until `startup_hold_s`, and until six times that only to more workers.
        ([FAILING, HELD, scored(60.0, 3, 500.0)], 1, 299.0, 1),
        ([FAILING, scored(600.0, 0, late=400.0), scored(60.0, 3, 500.0), scored(60.0, 4, 1500.0)], 1, 1799.0, 3),
        ([FAILING, scored(600.0, 0, late=400.0), scored(60.0, 3, 500.0), scored(60.0, 4, 1500.0)], 1, 1801.0, 2),
        ([scored(60.0, 0), HELD], 1, 1799.0, 1),
    ],
)
def test_choice_of_a_setting(replays: list[Replay], selected: int, age_s: float, chosen: int) -> None:
    memory = ReplayMemory(tuple(replays), selected, 4999, age_s, total=10_000.0, recent_total=1000.0)
    assert update_at(5000.0, memory, limits=replace(LIMITS, max_workers=1)).selected == chosen


def test_very_busy_model_is_not_replayed() -> None:
    seen = observation(1000.0, [ArrivalBucket(second, 50, 200.0, 4.0) for second in range(880, 1000)])
    assert seen.queue is not None
    memory, new = ReplayMemory(second=960).counted(seen.queue, 120.0)
    memory = update(memory, new, seen, seen.queue, Scaling(), LIMITS, 16, 16, 1)
    assert (memory.replays, memory.second, memory.preventable(0, 300.0)) == ((), 999, 0)
    assert (memory.current.hold_s, memory.current.floor) == (120.0, 0)
