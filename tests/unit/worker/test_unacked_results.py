"""Finished images are stored until a balancer has acknowledged them, and no longer."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.scheduler import IMAGE
from wire.messages import Finished
from worker.unacked_results import UnackedResults


def add(results: UnackedResults, task: str, size: int = 1, attempt: int = 1) -> None:
    results.add(Finished(task, attempt, IMAGE), [b"x" * size], size)


def stored(results: UnackedResults) -> list[str]:
    """Return the stored tasks, as a new balancer gets them."""
    return [message.task for message, _ in results.on_hello()]


def test_unacked_image_is_sent_again_after_hello() -> None:
    results = UnackedResults()
    add(results, "t", attempt=2)
    for _ in range(50):
        results.on_heartbeat()  # no balancer answers
    assert results.on_hello() == [(Finished("t", 2, IMAGE), [b"x"])]
    assert results.on_hello() == [(Finished("t", 2, IMAGE), [b"x"])], "the next balancer may die too"


@pytest.mark.parametrize("beats", [0, 1, 7])
def test_image_is_dropped_when_a_later_heartbeat_is_answered(beats: int) -> None:
    results = UnackedResults()
    results.on_hello()
    results.on_ack()
    for _ in range(beats):
        results.on_heartbeat()  # sent before the image, not answered yet
    add(results, "t")
    for _ in range(beats + 1):  # one more may have overtaken the image
        results.on_heartbeat()
        results.on_ack()
    assert len(results) == 1
    results.on_heartbeat()
    results.on_ack()
    assert len(results) == 0


@given(st.lists(st.sampled_from(["finish", "beat", "answer", "die"]), max_size=60))
def test_no_image_is_dropped_before_it_is_read(history: list[str]) -> None:
    results, names = UnackedResults(), itertools.count()
    #: Messages on the way to the balancer, in order of arrival.
    way: list[str] = ["hello"]
    results.on_hello()
    for each in history:
        if each == "finish":
            add(results, name := f"t{next(names)}")
            way.append(name)
        elif each == "beat":
            results.on_heartbeat()
            way.append("beat")
        elif each == "answer" and way:
            if way.pop(0) in ("hello", "beat"):
                results.on_ack()
        elif each == "die":
            way = ["hello", *stored(results)]
        finished = {name for name in way if name not in ("hello", "beat")}
        assert finished <= set(results), "an unread image must be stored"


def test_stored_bytes_are_bounded_and_newest_stay() -> None:
    results = UnackedResults(max_bytes=10)
    for number in range(5):
        add(results, f"t{number}", 4)
    assert stored(results) == ["t3", "t4"]
    add(results, "huge", 11)
    assert len(results) == 0


def test_task_is_stored_once_and_can_be_discarded() -> None:
    results = UnackedResults(max_bytes=10)
    add(results, "t", 6)
    add(results, "t", 6, attempt=2)
    add(results, "u", 4)
    assert [(message.task, message.attempt) for message, _ in results.on_hello()] == [("t", 2), ("u", 1)]
    results.discard("t")
    results.discard("t")
    assert stored(results) == ["u"]
