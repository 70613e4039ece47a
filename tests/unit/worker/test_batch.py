"""Joining, the order of groups, and leaving."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.messages import Assignment, ImageInputs
from worker.batch import CHECKPOINT_EVERY_S, Batch, JoinPolicy, Member, is_checkpoint_due, preview_steps

INPUTS = ImageInputs("a seven", 64, 64, steps=20, guidance_scale=3.0, seed=1, scheduler="ddim")


def member(name: str, key: str = "64x64", *, isolated: bool = False) -> Member[None]:
    return Member(Assignment(name, 1, INPUTS, isolated=isolated), key, None)


def chosen(batch: Batch[None]) -> list[str]:
    return [m.assignment.task for m in batch.next_group()]


def test_next_step_includes_new_task_and_not_finished_one() -> None:
    batch: Batch[None] = Batch()
    batch.join(member("a"))
    assert chosen(batch) == ["a"]
    batch.join(member("b"))
    assert chosen(batch) == ["a", "b"]
    left = batch.leave("a")
    assert left is not None
    assert left.assignment.task == "a"
    assert batch.leave("a") is None
    assert chosen(batch) == ["b"]
    assert ("b" in batch, "a" in batch, len(batch)) == (True, False, 1)


def test_group_with_least_used_time_goes_next() -> None:
    batch: Batch[None] = Batch()
    for name in "abcdefgh":
        batch.join(member(name, "small"))
    batch.join(member("z", "large"))
    turns = []
    for _ in range(100):
        key = batch.next_group()[0].key
        turns.append(key)
        batch.charge(key, 0.4 if key == "large" else 0.1)
    assert turns.count("large") == 20, "a step of the large shape costs four of the small one"


def test_new_group_shares_time_with_old_one() -> None:
    batch: Batch[None] = Batch()
    batch.join(member("old", "old"))
    for _ in range(1000):
        batch.charge("old", 1.0)
    batch.join(member("new", "new"))
    keys = []
    for _ in range(10):
        key = batch.next_group()[0].key
        keys.append(key)
        batch.charge(key, 1.0)
    assert keys.count("old") == keys.count("new") == 5


def test_isolated_task_has_its_own_step() -> None:
    batch: Batch[None] = Batch()
    batch.join(member("suspect", isolated=True))
    batch.join(member("other"))
    assert chosen(batch) == ["suspect"]
    batch.leave("suspect")
    assert chosen(batch) == ["other"]


def test_oldest_members_are_the_oldest_of_each_group() -> None:
    batch: Batch[None] = Batch()
    for name, key in ("ax", "bx", "cy"):
        batch.join(member(name, key))
    assert [leader.assignment.task for leader in batch.oldest_members()] == ["a", "c"]


@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "step"]), st.integers(0, 9), st.sampled_from("xyz"))))
def test_each_member_is_in_one_group_and_none_starves(moves: list[tuple[str, int, str]]) -> None:
    batch: Batch[None] = Batch()
    inside: dict[str, str] = {}
    for move, number, key in moves:
        name = f"t{number}"
        if move == "join" and name not in inside:
            batch.join(member(name, key))
            inside[name] = key
        elif move == "leave":
            assert (batch.leave(name) is not None) == (inside.pop(name, None) is not None)
        elif move == "step" and inside:
            batch.charge(batch.next_group()[0].key, 1.0)
        assert {m.assignment.task: m.key for m in batch.members()} == inside
        assert len(batch) == len(inside)
        assert len({m.key for m in batch.next_group()}) == (1 if inside else 0)
    served = set()
    for _ in range(2 * len(set(inside.values()))):
        served.add(batch.next_group()[0].key)
        batch.charge(batch.next_group()[0].key, 1.0)
    assert served == set(inside.values())


@pytest.mark.parametrize(
    ("waiting", "oldest_wait_s", "running", "step", "grouped"),
    [
        (3, 0.0, 0, 3, 0),  # the window is open: grouped waits for company
        (3, 0.4, 0, 3, 3),  # the oldest has waited long enough
        (12, 0.0, 0, 12, 12),  # a full batch waits for nothing
        (20, 0.0, 0, 20, 12),
        (5, 9.9, 1, 5, 0),  # nobody joins a grouped batch that runs
    ],
)
def test_join_policy(waiting: int, oldest_wait_s: float, running: int, step: int, grouped: int) -> None:
    assert JoinPolicy(False, 0.3).admit(waiting, oldest_wait_s, running, 12) == step
    assert JoinPolicy(True, 0.3).admit(waiting, oldest_wait_s, running, 12) == grouped


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
    running = member("a")
    running.saved_at, running.saved_step = 100.0, 10
    assert is_checkpoint_due(running, step, 100.0 + seconds, every) is due
