"""Who goes next among the jobs that wait for room, and how many may."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.jobs.job_queue import JobAdmission, JobQueue

Jobs = list[tuple[str, str, int]]


def backlog_of(jobs: Jobs) -> JobQueue:
    backlog = JobQueue()
    for seq, (name, owner, priority) in enumerate(jobs):
        backlog.push(name, owner, priority, seq)
    return backlog


def drained(backlog: JobQueue) -> list[str]:
    order: list[str] = []
    while (job := backlog.first()) is not None:
        assert backlog.position(job) == 0
        backlog.take(job)
        order.append(job)
    return order


@pytest.mark.parametrize(
    ("jobs", "order"),
    [
        ([], []),
        ([("1", "a", 0), ("2", "a", 0)], ["1", "2"]),
        ([("1", "a", 0), ("2", "a", 5), ("3", "a", 5)], ["2", "3", "1"]),
        ([("1", "a", 0), ("2", "a", 0), ("3", "a", 0), ("4", "b", 0)], ["1", "4", "2", "3"]),
        ([("1", "a", 9), ("2", "a", 9), ("3", "b", -9), ("4", "c", 0)], ["1", "3", "4", "2"]),
    ],
)
def test_owners_take_turns_and_their_jobs_go_by_priority_and_age(jobs: Jobs, order: list[str]) -> None:
    assert drained(backlog_of(jobs)) == order


JOBS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2)), max_size=20).map(
    lambda all_: [(str(i), owner, priority) for i, (owner, priority) in enumerate(all_)]
)


@given(JOBS, st.data())
def test_positions_are_the_order_in_which_jobs_leave(jobs: Jobs, data: st.DataObject) -> None:
    backlog = backlog_of(jobs)
    if jobs:
        gone = data.draw(st.sampled_from(jobs))[0]  # cancelled
        backlog.take(gone)
        assert gone not in backlog
        with pytest.raises(KeyError):
            backlog.take(gone)
    left = [name for name, _, _ in jobs if name in backlog]
    assert len(backlog) == len(left)
    positions = {name: backlog.position(name) for name in left}
    assert drained(backlog) == sorted(left, key=positions.__getitem__)
    assert sorted(positions.values()) == list(range(len(left)))


def test_jobs_enter_while_there_is_room_and_a_large_one_alone() -> None:
    turns = JobAdmission(["m", "other"], room=4)
    for seq, (job, images) in enumerate({"a": 2, "b": 2, "c": 6, "d": 1}.items()):
        turns.push(job, "m", images, "owner", 0, seq)
    turns.push("x", "other", 9, "owner", 0, 9)
    assert turns.next("other") == ["x"], "models do not share their room"
    assert turns.next("m") == ["a", "b"]
    assert [turns.position(job) for job in ("c", "d")] == [4, 5]
    turns.leave("a")
    assert turns.next("m") == [], "it waits for its turn, and the smaller one does not pass it"
    turns.leave("b")
    assert turns.next("m") == ["c"]
    turns.leave("c")
    turns.leave("c")
    assert turns.next("m") == ["d"]


STEPS = st.lists(st.tuples(st.sampled_from(["push", "next", "enter", "leave"]), st.integers(0, 9)), max_size=40)


@given(STEPS)
def test_room_is_kept_and_nothing_is_lost_on_the_way(steps: list[tuple[str, int]]) -> None:
    turns, waiting, entered = JobAdmission(["m"], room=5), dict[str, int](), dict[str, int]()
    for seq, (step, number) in enumerate(steps):
        some = [*waiting, *entered, "nobody"][number % (len(waiting) + len(entered) + 1)]
        if step == "push":
            waiting[f"{seq}"] = number % 3 + 1
            turns.push(f"{seq}", "m", waiting[f"{seq}"], "ab"[number % 2], 0, seq)
        elif step == "enter" and some in waiting:  # its time is over
            turns.enter(some)
            entered[some] = waiting.pop(some)
        elif step == "leave":
            turns.leave(some)
            waiting.pop(some, None)
            entered.pop(some, None)
        elif step == "next":
            for job in turns.next("m"):
                assert not entered or sum(entered.values()) + waiting[job] <= 5
                entered[job] = waiting.pop(job)
            assert entered or not waiting, "room is used"
        for job in waiting:
            assert turns.position(job) >= sum(entered.values())
