"""Recent arrivals: tasks for a replay, the variation of work, and the rate of a step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policies.queueing import WorkVariation, step_rate, sudden_rate
from controller.policies.replay import replay_tasks
from controller.types import Queue
from wire.snapshot import ArrivalBucket

BUCKETS = st.lists(
    st.builds(
        lambda second, tasks, each_s, factor: ArrivalBucket(
            second, tasks, each_s * (tasks - 1 + factor), each_s * factor
        ),
        st.integers(0, 1000),
        st.integers(1, 500),
        st.floats(0.01, 50),
        st.floats(1, 20),
    ),
    max_size=20,
)


@pytest.mark.parametrize(
    ("bucket", "tasks"),
    [
        (ArrivalBucket(7, 1, 4.0, 4.0), [(7.5, 4.0, 1)]),
        # The largest stays alone, the others have the mean of the rest.
        (ArrivalBucket(7, 3, 54.0, 50.0), [(7.5, 50.0, 1), (7.5, 2.0, 1), (7.5, 2.0, 1)]),
        # Unmeasured work is the mean.
        (ArrivalBucket(7, 2, 0.0, 0.0), [(7.5, 3.0, 1), (7.5, 3.0, 1)]),
        # Many short tasks are merged up to an eighth of the allowed wait.
        (ArrivalBucket(7, 12, 6.0, 0.5), [(7.5, 0.5, 1), *[(7.5, 1.0, 2)] * 5, (7.5, 0.5, 1)]),
    ],
)
def test_bucket_becomes_tasks(bucket: ArrivalBucket, tasks: list[tuple[float, float, int]]) -> None:
    assert replay_tasks([bucket], 3.0, 10.0) == tasks


@given(BUCKETS)
def test_tasks_keep_count_and_work(buckets: list[ArrivalBucket]) -> None:
    tasks = replay_tasks(buckets, 3.0, 10.0)
    assert sum(task.tasks for task in tasks) == sum(bucket.tasks for bucket in buckets)
    assert sum(task.work_s for task in tasks) == pytest.approx(sum(bucket.work_s for bucket in buckets))


@pytest.mark.parametrize(
    ("works", "squared"),
    [
        ([4.0] * 50, 0.0),
        ([1.0, 3.0] * 50, 0.25),
        ([1.0] * 96 + [50.0] * 4, 10.523),
        ([9.0] * 19, 1.0),  # too few to tell
    ],
)
def test_variation_of_work(works: list[float], squared: float) -> None:
    buckets = [ArrivalBucket(second, 1, work_s, work_s) for second, work_s in enumerate(works)]
    assert WorkVariation().updated(buckets).squared == pytest.approx(squared, abs=0.01)


@given(st.lists(BUCKETS, max_size=5))
def test_variation_is_never_negative(parts: list[list[ArrivalBucket]]) -> None:
    variation = WorkVariation()
    for part in parts:
        variation = variation.updated(part)
    assert variation.squared >= 0
    assert variation.count <= 1000 + 1e-6


@pytest.mark.parametrize(
    ("ages", "rate"),
    [
        ([], 0.3),
        ([3.0], 0.3),  # one arrival is chance
        ([0.0, 1.0, 2.0, 3.0] * 4, 1.6),  # 16 in 5 s: (16 - 8) / 5
        ([60.0] * 50, 0.3),  # long ago
    ],
)
def test_step_shows_in_the_last_seconds(ages: list[float], rate: float) -> None:
    buckets = [ArrivalBucket(int(1000 - age_s), 1, 1.0, 1.0) for age_s in sorted(ages, reverse=True)]
    assert step_rate(Queue(0, 0, recent_arrivals=buckets, uptime_s=1000.0), 0.3) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("count", "within_s", "before", "uptime_s", "rate"),
    [
        (60, 15, 270, 1000.0, 4.0),  # 0.3/s before
        (20, 15, 270, 1000.0, 0.0),  # eight standard deviations above 4.6 are 23.5
        (60, 15, 3600, 1000.0, 0.0),  # 4/s is usual
        (5, 1, 0, 1000.0, 0.0),  # too few to tell
        (60, 15, 0, 20.0, 4.0),  # counted for seconds only
        (0, 15, 0, 0.0, 0.0),
    ],
)
def test_sudden_rate_is_no_chance(count: int, within_s: int, before: int, uptime_s: float, rate: float) -> None:
    spread = [int(uptime_s - 1 - number * within_s / max(count, 1)) for number in range(count)]
    buckets = [ArrivalBucket(second, spread.count(second), 1.0, 1.0) for second in sorted(set(spread))]
    queue = Queue(0, 0, recent_arrivals=buckets, arrivals_long_window=before + count, uptime_s=uptime_s)
    assert sudden_rate(queue, 900.0) == pytest.approx(rate, rel=0.1)
