"""Load that recurs by the time of the hour, the day and the week: what is learnt of it, and what it floors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from configs.scaling import RecurringLoad, Scaling
from controller.autoscaler.model_state import RecentStarts
from controller.autoscaler.persistence import SavedModel, pack, unpack
from controller.policies import bounds, static
from controller.policies.recurring_load import RecurringMemory, floor, update
from controller.types import Observation, Queue, WorkerLimits
from wire.snapshot import ArrivalBucket

SCALING = Scaling(recurring_load=RecurringLoad(learn=True))
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
MONDAY = datetime(2026, 11, 2, tzinfo=UTC).timestamp()
AHEAD_S = 70.0
LIMITS = WorkerLimits(1, 8, 60, 60, 10)

#: Tasks that arrive in a second, by Unix time. Each has a second of work.
Traffic = Callable[[float], int]


def queue_at(unix_s: float, traffic: Traffic, begun_s: float) -> Queue:
    """Return what the balancer reports, which has counted since `begun_s`."""
    uptime_s = int(unix_s - begun_s)
    buckets = [
        ArrivalBucket(second, tasks, float(tasks), 1.0)
        for second in range(max(uptime_s - 120, 0), uptime_s)
        if (tasks := traffic(begun_s + second))
    ]
    return Queue(0, 0, mean_work_s=1.0, uptime_s=float(uptime_s), recent_arrivals=buckets)


def learnt(traffic: Traffic, times: Iterable[float], scaling: Scaling = SCALING) -> RecurringMemory:
    """Return the memory after decisions at these times."""
    memory = RecurringMemory()
    for unix_s in times:
        memory = update(memory, queue_at(unix_s, traffic, MONDAY), scaling, unix_s)
    return memory


def every(interval_s: float, start_s: float, end_s: float) -> list[float]:
    return [MONDAY + start_s + n * interval_s for n in range(int((end_s - start_s) / interval_s))]


def at_full_hours(unix_s: float) -> int:
    """100 tasks at once: 9.1 workers can begin them within 10 s."""
    return 100 if unix_s % HOUR == 0 else 0


def around(times: Iterable[float]) -> list[float]:
    """Decisions in the minutes around these times, and around the hours before and after; none in between."""
    hours = [time + hour * HOUR for time in times for hour in (-1, 0, 1)]
    return [time + offset for time in hours for offset in range(-120, 421, 30)]


def test_a_bunch_at_full_hours_is_expected_from_the_fourth_on() -> None:
    for hours, expected in ((2, 0), (4, 11)):
        memory = learnt(at_full_hours, every(30, 0, hours * HOUR - 10 * MINUTE))
        now = MONDAY + hours * HOUR
        assert floor(memory, SCALING.recurring_load, now - 60, AHEAD_S) == expected
        assert floor(memory, SCALING.recurring_load, now - 600, AHEAD_S) == 0
        assert floor(memory, SCALING.recurring_load, now + 120, AHEAD_S) == 0


def test_a_slot_counts_once_it_has_ended() -> None:
    memory = learnt(at_full_hours, every(30, 0, 150))
    assert [sorted(cycle.slots) for cycle in memory.cycles] == [[0], [], []]


def test_what_does_not_recur_raises_no_floor() -> None:
    def now_and_then(unix_s: float) -> int:
        return at_full_hours(unix_s) if int(unix_s // HOUR) % 4 == 0 else 0

    memory = learnt(now_and_then, every(30, 0, 30 * HOUR))
    assert all(
        floor(memory, SCALING.recurring_load, MONDAY + 30 * HOUR + at, AHEAD_S) <= 1 for at in range(0, 3600, 60)
    )


def test_a_time_of_the_day_is_learnt_over_days() -> None:
    def at_nine(unix_s: float) -> int:
        return 100 if unix_s % DAY == 9 * HOUR else 0

    memory = learnt(at_nine, around(MONDAY + day * DAY + 9 * HOUR for day in range(3)))
    nine = MONDAY + 3 * DAY + 9 * HOUR
    assert floor(memory, SCALING.recurring_load, nine - 60, AHEAD_S) == 11
    assert floor(memory, SCALING.recurring_load, nine - HOUR, AHEAD_S) == 0


def test_a_day_of_the_week_is_learnt_over_weeks() -> None:
    def mondays_at_nine(unix_s: float) -> int:
        return 100 if (unix_s - MONDAY) % (7 * DAY) == 9 * HOUR else 0

    memory = learnt(mondays_at_nine, around(MONDAY + day * DAY + 9 * HOUR for day in range(7 * 4)))
    monday = MONDAY + 28 * DAY + 9 * HOUR
    assert floor(memory, SCALING.recurring_load, monday - 60, AHEAD_S) == 11
    assert floor(memory, SCALING.recurring_load, monday + DAY - 60, AHEAD_S) == 0


def test_days_are_those_of_the_time_zone() -> None:
    """Nine o'clock moves by an hour in Unix time when the clocks change."""
    berlin = ZoneInfo("Europe/Berlin")
    scaling = Scaling(recurring_load=RecurringLoad(learn=True, timezone="Europe/Berlin"))
    nines = [datetime(2026, 10, day, 9, tzinfo=berlin).timestamp() for day in range(20, 28)]

    def at_nine(unix_s: float) -> int:
        return 100 if unix_s in nines else 0

    memory = RecurringMemory()
    for unix_s in around(nines[:-1]):
        memory = update(memory, queue_at(unix_s, at_nine, nines[0] - DAY), scaling, unix_s)
    assert nines[-1] - nines[0] == 7 * DAY + HOUR
    assert floor(memory, scaling.recurring_load, nines[-1] - 60, AHEAD_S) == 11
    assert floor(memory, scaling.recurring_load, nines[-1] - HOUR - 60, AHEAD_S) == 0


def test_old_days_fade() -> None:
    def at_nine(unix_s: float) -> int:
        return 100 if unix_s % DAY == 9 * HOUR and unix_s < MONDAY + 6 * DAY else 0

    scaling = Scaling(recurring_load=RecurringLoad(learn=True, half_life_days=1))
    memory = learnt(at_nine, around(MONDAY + day * DAY + 9 * HOUR for day in range(9)), scaling)
    assert floor(memory, scaling.recurring_load, MONDAY + 9 * DAY + 9 * HOUR - 60, AHEAD_S) <= 1


def test_arrivals_are_counted_once_and_across_a_restart_of_the_balancer() -> None:
    usual = learnt(at_full_hours, every(30, 0, 5 * HOUR))
    often = learnt(at_full_hours, every(7, 0, 5 * HOUR))
    memory = RecurringMemory()
    for unix_s in every(30, 0, 5 * HOUR):
        begun_s = MONDAY if unix_s < MONDAY + 2.5 * HOUR else MONDAY + 2.5 * HOUR
        memory = update(memory, queue_at(unix_s, at_full_hours, begun_s), SCALING, unix_s)
    for each in (usual, often, memory):
        assert floor(each, SCALING.recurring_load, MONDAY + 5 * HOUR - 60, AHEAD_S) == 11


def test_it_is_kept_over_a_restart_of_the_controller() -> None:
    memory = bounds.PolicyMemory(recurring=learnt(at_full_hours, every(30, 0, 5 * HOUR)))
    saved = pack({"m": SavedModel("slo_work", RecentStarts(), memory)}, 100.0)
    assert unpack(saved, 500.0, 10.0)["m"].memory.recurring == memory.recurring


def decide(unix_s: float, memory: bounds.PolicyMemory, scaling: Scaling = SCALING) -> tuple[int, str]:
    queue = queue_at(unix_s, at_full_hours, MONDAY)
    observation = Observation("m", queue, [], cold_start_s=40.0, unix_s=unix_s)
    limits = replace(LIMITS, min_workers=scaling.min_workers)
    decision, _ = bounds.decide(static.decide, observation, scaling, limits, memory, unix_s)
    return decision.desired, decision.reason


def test_it_is_a_floor_within_the_bounds() -> None:
    memory = bounds.PolicyMemory(recurring=learnt(at_full_hours, every(30, 0, 5 * HOUR)))
    before = MONDAY + 5 * HOUR - 60
    number, reason = decide(before, memory)
    assert number == 8, "max_workers"
    assert reason.endswith("at this time, 8 were needed before")
    asleep = Scaling(min_workers=0, recurring_load=RecurringLoad(learn=True))
    assert decide(before, memory, asleep)[0] == 8, "it wakes a model that sleeps"
    assert decide(before - 600, memory, asleep)[0] == 0
    assert decide(before, memory, Scaling())[0] == 1, "off by default"


@given(
    st.lists(st.tuples(st.integers(0, 7200), st.integers(1, 50)), max_size=30),
    st.lists(st.integers(1, 7200), max_size=40),
)
def test_any_traffic_gives_a_floor_that_some_second_needed(arrivals: list[tuple[int, int]], times: list[int]) -> None:
    by_second = {MONDAY + second: tasks for second, tasks in arrivals}
    memory = learnt(lambda unix_s: by_second.get(unix_s, 0), sorted(MONDAY + time for time in times))
    most = 1.15 * sum(by_second.values()) / 11
    for at in range(0, 7200, 600):
        assert 0 <= floor(memory, SCALING.recurring_load, MONDAY + at, AHEAD_S) <= most + 1
