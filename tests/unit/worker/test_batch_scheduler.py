"""Waiting, joining, the order of groups, and leaving."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.model_sections import Batching
from wire.inputs import NO_SHAPE, ImageInputs, Shape, TaskInputs
from wire.messages import Assignment
from worker.batch_scheduler import (
    BatchScheduler,
    Member,
    StepRecord,
    TimedStep,
    WaitingTask,
    preview_steps,
    shape_of,
)
from worker.batch_size import BatchSizer
from worker.engine import EngineRequest, UnstreamedRow
from worker.step_results import CHECKPOINT_EVERY_S, checkpoint_interval

SIZE = Shape("64x64", 4096)
INPUTS = ImageInputs("a seven", 64, 64, steps=20, guidance_scale=3.0, seed=1, scheduler="ddim")


@dataclass
class FakeRow(UnstreamedRow):
    step: int = 0
    steps: int = 20


def scheduler(max_batch: int = 12, batching: Batching | None = None) -> BatchScheduler:
    sizer = BatchSizer(max_batch, fixed=True, min_gain=0.05, max_step_s=None)
    return BatchScheduler(sizer, batching or Batching(), SIZE)


def test_incomplete_batch_waits_for_more_while_nothing_runs() -> None:
    made = scheduler(3, Batching(batch_wait_ms=20))
    made.add(task("a", since=1.0))
    assert made.take_joining(1.019) == []
    made.add(task("b", since=1.01))
    assert [each.assignment.task for each in made.take_joining(1.021)] == ["a", "b"], "the oldest has waited"
    for name in "cde":
        made.add(task(name, since=2.0))
    assert len(made.take_joining(2.0)) == 3, "the batch is full"
    made.add(task("f", since=3.0))
    made.join(task("g"), FakeRow(), 3.0)
    assert len(made.take_joining(3.0)) == 1, "something runs: the others may join between two steps"


def task(name: str, key: str = "64x64", *, isolated: bool = False, since: float = 0.0) -> WaitingTask:
    return WaitingTask(Assignment(name, 1, INPUTS, isolated=isolated), EngineRequest(INPUTS), key, SIZE, since)


def join(made: BatchScheduler, name: str, key: str = "64x64", *, isolated: bool = False, step: int = 0) -> None:
    made.join(task(name, key, isolated=isolated), FakeRow(step), now=0.0)


def take(made: BatchScheduler, now: float = 0.0) -> str:
    """Let the waiting tasks that may join do so; return their names."""
    joining = made.take_joining(now)
    for each in joining:
        made.join(each, FakeRow(), now)
    return "".join(each.assignment.task for each in joining)


def next_names(made: BatchScheduler) -> str:
    return "".join(member.assignment.task for member in made.next_group(0.0))


def count_step(made: BatchScheduler, members: list[Member], advanced: int, seconds: float, now: float) -> None:
    first = members[0]
    record = StepRecord(first.key, first.shape, advanced, advanced == len(members))
    made.on_step(advanced, seconds, TimedStep(record, seconds), now)


def step_once(made: BatchScheduler, seconds: float | dict[str, float]) -> str:
    """Let the next group make a step; return its key."""
    members = made.next_group(0.0)
    key = str(members[0].key)
    count_step(made, members, len(members), seconds if isinstance(seconds, float) else seconds[key], now=0.0)
    return key


def test_next_step_includes_new_task_and_not_finished_one() -> None:
    made = scheduler()
    join(made, "a")
    assert next_names(made) == "a"
    join(made, "b")
    assert next_names(made) == "ab"
    left = made.leave("a")
    assert left is not None
    assert left.assignment.task == "a"
    assert made.leave("a") is None
    assert (next_names(made), list(made.running)) == ("b", ["b"])


def test_group_with_least_used_time_goes_next() -> None:
    made = scheduler()
    for name in "abcdefgh":
        join(made, name, "small")
    join(made, "z", "large")
    turns = [step_once(made, {"large": 0.4, "small": 0.1}) for _ in range(100)]
    assert turns.count("large") == 20, "a step of the large shape costs four of the small one"


def test_new_group_shares_time_with_old_one() -> None:
    made = scheduler()
    join(made, "a", "old")
    for _ in range(1000):
        step_once(made, 1.0)
    join(made, "b", "new")
    keys = [step_once(made, 1.0) for _ in range(10)]
    assert keys.count("old") == keys.count("new") == 5


def test_isolated_task_has_its_own_step() -> None:
    made = scheduler()
    join(made, "a", isolated=True)
    join(made, "b")
    join(made, "c")
    assert next_names(made) == "a"
    made.leave("a")
    assert next_names(made) == "bc", "the others share their steps again"


@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "step"]), st.integers(0, 9), st.sampled_from("xyz"))))
def test_each_member_is_in_one_group_and_none_starves(moves: list[tuple[str, int, str]]) -> None:
    made = scheduler()
    inside: dict[str, str] = {}
    for move, number, key in moves:
        name = f"t{number}"
        if move == "join" and name not in inside:
            join(made, name, key)
            inside[name] = key
        elif move == "leave":
            assert (made.leave(name) is not None) == (inside.pop(name, None) is not None)
        elif move == "step" and inside:
            step_once(made, 1.0)
        assert {name: member.key for name, member in made.running.items()} == inside
        assert len({member.key for member in made.next_group(0.0)}) == (1 if inside else 0)
    served = {step_once(made, 1.0) for _ in range(2 * len(set(inside.values())))}
    assert served == set(inside.values())


@pytest.mark.parametrize(
    ("running", "waiting", "joining"),
    [
        ("", "ax bx cx dx", "abc"),  # up to the limit of the group
        ("rx sx", "ax bx", "a"),
        ("rx sx tx", "ax bx by", "b"),  # a full group blocks no other
        ("", "ax ay bx by cx cy dx dy", "aabbcc"),
    ],
)
def test_waiting_tasks_join_groups_with_room(running: str, waiting: str, joining: str) -> None:
    made = scheduler(max_batch=3)
    for each in running.split():
        join(made, name=each[0], key=each[1])
    for each in waiting.split():
        made.add(task(each, key=each[1]))
    assert "".join(joined.assignment.task[0] for joined in made.take_joining(0.0)) == joining
    assert len(made.waiting) == len(waiting.split()) - len(joining)


@pytest.mark.parametrize(
    ("waiting", "oldest_wait_s", "running", "joining"),
    [
        (3, 0.0, 0, 0),  # the window is open: it waits for more
        (3, 0.4, 0, 3),  # the oldest has waited long enough
        (12, 0.0, 0, 12),  # a full batch waits for nothing
        (20, 0.0, 0, 12),
        (5, 9.9, 1, 0),  # none joins a batch that runs
    ],
)
def test_grouped_mode_forms_one_batch_at_a_time(waiting: int, oldest_wait_s: float, running: int, joining: int) -> None:
    made = scheduler(batching=Batching(mode="grouped", window_s=0.3))
    for number in range(running):
        join(made, f"r{number}")
    for number in range(waiting):
        made.add(task(f"w{number}", since=10.0))
    assert len(made.take_joining(10.0 + oldest_wait_s)) == joining


def test_grouped_batch_is_one_of_all_keys() -> None:
    made = scheduler(4, batching=Batching(mode="grouped", window_s=0.3))
    for number, key in enumerate("abababa"):
        made.add(task(f"{number}", key))
    assert take(made) == "0123"


def test_slots_are_a_full_batch_until_a_task_waits_for_it() -> None:
    made = scheduler(max_batch=2)
    assert made.slots(0.0) == 2
    join(made, "a")
    assert made.slots(0.0) == 2
    for name in "bcd":
        made.add(task(name))
    assert (take(made), made.slots(0.0)) == ("b", 2), "no more than it runs"
    made.drain()
    assert made.slots(0.0) == 0


def test_idle_worker_offers_what_fits_whatever_the_key() -> None:
    made = scheduler(max_batch=8)
    made.on_out_of_memory("large", 3, now=0.0)
    assert made.slots(1.0) == 3
    join(made, "a", "small")
    assert made.slots(1.0) == 8
    join(made, "b", "large")
    assert made.slots(1.0) == 8, "the group that allows more counts"
    assert made.stats.out_of_memory == 1


def test_none_joins_full_memory_until_a_task_leaves() -> None:
    made = scheduler()
    join(made, "a")
    made.add(task("b"))
    [deferred] = made.take_joining(0.0)
    made.defer(deferred)
    assert (take(made), list(made.waiting)) == ("", ["b"])
    made.leave("a")
    assert take(made) == "b"


@pytest.mark.parametrize(("runs", "taken"), [(True, "b"), (False, "bcd")])
def test_task_that_waits_for_memory_goes_first_and_alone_while_others_run(runs: bool, taken: str) -> None:
    made = scheduler()
    for name in "xy":
        join(made, name)
    for name in "bc":
        made.add(task(name))
    for deferred in made.take_joining(0.0):
        made.defer(deferred)
    made.add(task("d"))
    assert made.has_deferred
    made.leave("x")
    if not runs:
        made.leave("y")
    assert (take(made), made.has_deferred) == (taken, False)


def test_task_that_waits_for_memory_holds_up_nobody_once_it_is_gone() -> None:
    made = scheduler()
    join(made, "x")
    made.add(task("b"))
    [deferred] = made.take_joining(0.0)
    made.defer(deferred)
    made.add(task("c"))
    made.remove("b")
    made.leave("x")
    join(made, "y")
    assert take(made) == "c"


def test_stats_count_steps_and_late_joins() -> None:
    made = scheduler()
    row = FakeRow()
    made.join(task("a"), row, now=0.0)
    join(made, "b")
    row.step = 3
    join(made, "c")
    count_step(made, made.next_group(0.0), 3, 1.0, now=1.0)
    count_step(made, made.next_group(0.0), 0, 1.0, now=2.0)  # all failed
    stats = made.stats
    assert (stats.steps, stats.rows, stats.max_batch, stats.step_s, stats.joined_midway) == (1, 3, 3, 1.0, 1)
    assert (stats.mean_step_s, stats.mean_batch) == (1.0, 3.0), "the first step is all that is known"
    count_step(made, made.next_group(0.0), 2, 2.0, now=3.0)
    assert (stats.mean_step_s, stats.mean_batch) == pytest.approx((1.1, 2.9))


def test_time_that_does_not_come_again_is_no_step_time() -> None:
    sizer = BatchSizer(32, fixed=False, min_gain=0.05, max_step_s=None)
    made = BatchScheduler(sizer, Batching(), SIZE)
    join(made, "a")
    for extra_s in (0.25, 0.25, 0.25):
        made.on_step(1, 1.0, TimedStep(StepRecord("64x64", SIZE, 1, is_whole=True), 1.0), 0.0, extra_s=extra_s)
    assert [curve.points for curve in sizer.curves(0.0)] == [[(1, 0.75)]]


@pytest.mark.parametrize(
    ("shape", "key", "expected"),
    [
        (SIZE, "a key", SIZE),
        (NO_SHAPE, "a key", Shape("a key")),
        (NO_SHAPE, "k" * 300, Shape("k" * 200)),
        (NO_SHAPE, ("a", 1), NO_SHAPE),
    ],
)
def test_shape_is_that_of_the_inputs_or_else_a_text_key(shape: Shape, key: Hashable, expected: Shape) -> None:
    @dataclass
    class Inputs:
        shape: Shape

    assert shape_of(cast("TaskInputs", Inputs(shape)), key) == expected


@pytest.mark.parametrize("advanced", [0, 1, 2])
def test_only_steps_of_all_members_set_the_limit(advanced: int) -> None:
    sizer = BatchSizer(32, fixed=False, min_gain=0.05, max_step_s=None)
    made = BatchScheduler(sizer, Batching(), SIZE)
    for name in "ab":
        join(made, name)
    for _ in range(3):
        count_step(made, made.next_group(0.0), advanced, 1.0, now=0.0)
    assert [curve.points for curve in sizer.curves(0.0)] == ([[(2, 1.0)]] if advanced == 2 else [])


@pytest.mark.parametrize(
    ("steps", "previews", "due"),
    [(20, 0, set()), (20, 1, {10}), (20, 3, {5, 10, 15}), (2, 3, {1}), (1, 3, set()), (4, 3, {1, 2, 3})],
)
def test_previews_are_even_and_exclude_last_step(steps: int, previews: int, due: set[int]) -> None:
    assert preview_steps(steps, previews) == due


@pytest.mark.parametrize(
    ("every", "step", "seconds", "due"),
    [
        (5, 14, 99.0, False),
        (5, 15, 0.0, True),
        (1, 11, 0.0, True),
        ("auto", 99, CHECKPOINT_EVERY_S - 0.1, False),
        ("auto", 11, CHECKPOINT_EVERY_S, True),
        ("never", 99, 99.0, False),
    ],
)
def test_checkpoint_is_due_by_steps_or_time(
    every: int | Literal["auto", "never"], step: int, seconds: float, due: bool
) -> None:
    after_s, after_steps = checkpoint_interval(every)
    row = FakeRow(step=10)
    running = Member(task("a").assignment, "key", SIZE, row)
    running.on_checkpoint(100.0)
    row.step = step
    now = 100.0 + seconds
    assert (now - running.saved_at >= after_s or step - running.saved_step >= after_steps) is due
    assert min(after_s, after_steps) > 0, "none follows at once"


def test_waiting_task_can_be_removed_before_it_joins() -> None:
    made = scheduler()
    made.add(task("a"))
    assert made.remove("a") is not None
    assert made.remove("a") is None
    assert take(made) == ""


@given(
    running=st.text("abc", max_size=6),
    waiting=st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=20),
    removed=st.sets(st.integers(0, 19)),
)
def test_every_key_joins_up_to_its_limit(running: str, waiting: list[tuple[str, bool]], removed: set[int]) -> None:
    made = scheduler(3)
    for number, key in enumerate(running):
        join(made, f"r{number}", key)
    for number, (key, _) in enumerate(waiting):
        made.add(task(str(number), key))
    for number in removed:
        made.remove(str(number))
    unready = {str(number) for number, (_, is_ready) in enumerate(waiting) if not is_ready}
    left = [task.assignment.task for task in made.waiting.values()]
    expected = []
    for key in "abcd":
        ready = [name for name in left if waiting[int(name)][0] == key and name not in unready]
        expected += ready[: max(3 - running.count(key), 0)]
    joined = [each.assignment.task for each in made.take_joining(0.0, unready)]
    assert joined == sorted(expected, key=int)
    assert list(made.waiting) == [name for name in left if name not in joined]
