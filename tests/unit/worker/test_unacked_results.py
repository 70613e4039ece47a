"""Finished pictures are kept until a balancer must have them, and no longer."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.messages import Finished
from worker.unacked_results import Unread


def put(unread: Unread, task: str, size: int = 1, attempt: int = 1) -> None:
    unread.put(Finished(task, attempt), b"x" * size)


def test_what_was_sent_while_no_balancer_was_there_is_sent_again_to_the_next() -> None:
    unread = Unread()
    put(unread, "t", attempt=2)
    for _ in range(50):
        unread.beat()  # into the void
    [(attempt, envelope)] = unread.introduce().values()
    assert (attempt, envelope.message, envelope.frames) == (2, Finished("t", 2), [b"x"])
    assert list(unread.introduce()) == ["t"], "that one may have died too"


@pytest.mark.parametrize("beats", [0, 1, 7])
def test_a_picture_goes_when_a_later_heartbeat_was_answered(beats: int) -> None:
    unread = Unread()
    unread.introduce()
    unread.welcomed()
    for _ in range(beats):
        unread.beat()  # sent before the picture, and not answered yet
    put(unread, "t")
    for _ in range(beats + 1):  # one more may have overtaken the picture
        unread.beat()
        unread.welcomed()
    assert len(unread) == 1
    unread.beat()
    unread.welcomed()
    assert len(unread) == 0


@given(st.lists(st.sampled_from(["finish", "beat", "answer", "die"]), max_size=60))
def test_nothing_goes_that_no_balancer_has_read(history: list[str]) -> None:
    unread, names = Unread(), itertools.count()
    #: What is on its way to the balancer, in order; the first is its next to read. Hello stands for itself.
    way: list[str] = ["hello"]
    unread.introduce()
    for each in history:
        if each == "finish":
            put(unread, name := f"t{next(names)}")
            way.append(name)
        elif each == "beat":
            unread.beat()
            way.append("beat")
        elif each == "answer" and way:
            if way.pop(0) in ("hello", "beat"):
                unread.welcomed()
        elif each == "die":
            way = ["hello", *unread.introduce()]
        finished = {name for name in way if name not in ("hello", "beat")}
        assert finished <= set(unread), "or it could be lost"


def test_what_is_kept_is_bounded_and_the_newest_stays() -> None:
    unread = Unread(most_bytes=10)
    for number in range(5):
        put(unread, f"t{number}", 4)
    assert list(unread.introduce()) == ["t3", "t4"]
    put(unread, "huge", 11)
    assert len(unread) == 0


def test_a_task_is_kept_once_and_can_be_dropped() -> None:
    unread = Unread(most_bytes=10)
    put(unread, "t", 6)
    put(unread, "t", 6, attempt=2)
    put(unread, "u", 4)
    assert {task: attempt for task, (attempt, _) in unread.introduce().items()} == {"t": 2, "u": 1}
    unread.drop("t")
    unread.drop("t")
    assert list(unread.introduce()) == ["u"]
