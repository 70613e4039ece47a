"""Capacity and results on their way to the balancer: what is sent, in which order, and what is sent again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from scripts.harness.processes import PATIENCE_S, wait_until
from wire.codec import WorkerEnvelope
from wire.inputs import ImageInputs, Part
from wire.messages import PROTOCOL, Assignment, Capacity, Failed, Finished, Hello, Progress, Started
from worker.engine import Checkpoint, TaskResult
from worker.offer import Offer, RoundTrips
from worker.postprocessing import FinishedRow, PostProcessor

INPUTS = ImageInputs("a seven", 64, 64, steps=20, guidance_scale=3.0, seed=1, scheduler="ddim")
HELLO = Hello(PROTOCOL, "w", "m", "sim:0", 1)
MAX_BYTES = 100


class Balancer:
    """Takes what a worker sends, and calls back at a time only when it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[WorkerEnvelope, ...]] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.trips = RoundTrips()
        self.post = PostProcessor(
            lambda *envelopes: self.calls.append(envelopes),
            1,
            MAX_BYTES,
            call_at=lambda at, call: self.due.append((at, call)),
            round_trips=self.trips,
        )

    def take(self) -> list[list[object]]:
        """Return the messages since the last call, of each call together."""
        calls, self.calls = self.calls, []
        return [[envelope.message for envelope in each] for each in calls]


def row(name: str, size: int = 3, attempt: int = 1) -> FinishedRow:
    return FinishedRow(Assignment(name, attempt, INPUTS), result(size), 20)


def result(size: int = 3) -> TaskResult:
    return TaskResult((Part("image/png"),), [bytes(size)])


def hello(balancer: Balancer, *tasks: tuple[str, int], slots: int = 4) -> tuple[list[tuple[str, int]], list[str], int]:
    """Send Hello; return the tasks that it names, those whose results follow, and the capacity."""
    balancer.take()
    balancer.post.send_hello(HELLO, tasks, slots)
    [[first], *results, [last]] = balancer.take()
    assert isinstance(first, Hello)
    assert isinstance(last, Capacity)
    return list(first.running), [each.task for [each] in results if isinstance(each, Finished)], last.slots


def test_result_is_named_and_sent_again_until_it_is_acknowledged() -> None:
    balancer = Balancer()
    assert hello(balancer) == ([], [], 4)
    balancer.post.report((), [row("a")])
    assert [type(each) for each in balancer.take()[0]] == [Finished]
    assert hello(balancer, ("b", 2)) == ([("b", 2), ("a", 1)], ["a"], 4)
    balancer.post.on_ack()  # of Hello
    balancer.post.on_heartbeat()
    balancer.post.report((), [row("c")])
    for _ in range(2):
        balancer.post.on_ack()
        balancer.post.on_heartbeat()
    assert hello(balancer) == ([("c", 1)], ["c"], 4), "that heartbeat may have been read before it was sent"
    for _ in range(3):
        balancer.post.on_ack()
    assert hello(balancer) == ([], [], 4)
    balancer.post.report((), [row("d")])
    assert hello(balancer, ("d", 2)) == ([("d", 2)], [], 4), "a task that runs again has no result"


def test_capacity_counts_what_is_being_made_and_comes_first() -> None:
    balancer, gate = Balancer(), threading.Event()

    def make() -> TaskResult:
        gate.wait(10.0)
        return result()

    balancer.post.offer(2)
    assert balancer.take() == [[Capacity(2)]]
    balancer.post.offer(2)
    assert balancer.take() == [], "nothing has changed"
    balancer.post.report((), [FinishedRow(Assignment("a", 1, INPUTS), make, 20)])
    assert balancer.take() == [[Capacity(3), Progress("a", 1, 20, 20)]]
    assert hello(balancer, slots=2) == ([("a", 1)], [], 3)
    assert hello(balancer, slots=0) == ([("a", 1)], [], 0)
    balancer.post.offer(2)
    assert balancer.take() == [[Capacity(3)]]
    balancer.post.offer(0)
    assert balancer.take() == [[Capacity(0)]], "a worker that closes takes nothing in place of it"
    gate.set()
    balancer.post.shutdown()
    assert not balancer.post.finishing
    assert [[type(each) for each in sent] for sent in balancer.take()] == [[Finished]]


@pytest.mark.parametrize(("size", "kind"), [(MAX_BYTES, Finished), (MAX_BYTES + 1, Failed)])
def test_result_that_the_balancer_would_refuse_is_a_failure(size: int, kind: type) -> None:
    balancer = Balancer()
    assert balancer.post.can_send(size) is (kind is Finished)
    balancer.post.report((), [row("a", size)])
    [[sent]] = balancer.take()
    assert type(sent) is kind
    assert (balancer.post.finished, balancer.post.failed) == ((1, 0) if kind is Finished else (0, 1))


@pytest.mark.parametrize(
    "ending", ["its time comes", "the step ends first", "it is early", "no slots", "the next step"]
)
def test_offer_with_a_time_ends_with_its_step(ending: str) -> None:
    balancer = Balancer()
    at = time.monotonic() + (60.0 if ending == "it is early" else 0.0)
    started = WorkerEnvelope(Started("a", 1))
    balancer.post.start_step([started], 2, Offer(1, at))
    assert balancer.take() == [[Capacity(2), started.message]]
    [(due, call)] = balancer.due
    assert due == at
    if ending == "the step ends first":
        balancer.post.report((), ())
    elif ending == "no slots":
        balancer.post.offer(0)
        balancer.take()
    elif ending == "the next step":
        balancer.post.start_step((), 2, None)
    call()
    assert balancer.take() == ([[Capacity(2, 1)]] if ending == "its time comes" else [])
    assert (balancer.trips.offered_at is not None) == (ending == "its time comes")
    balancer.post.report((), ())
    assert balancer.take() == ([[Capacity(2)]] if ending == "its time comes" else [])


def test_offer_without_a_time_holds_until_another() -> None:
    balancer = Balancer()
    balancer.post.start_step((), 2, Offer(3))
    balancer.post.report((), ())
    balancer.post.start_step((), 2, None)
    assert balancer.take() == [[Capacity(2, 3)]]
    balancer.post.start_step((), 2, Offer(1))
    assert balancer.take() == [[Capacity(2, 1)]]


def wait_for_preview(balancer: Balancer, task: Assignment) -> list[object]:
    """Make a preview; return what was sent before it, by the same thread."""
    preview = Progress(task.task, task.attempt, 0, 20, preview=True, frames=1)
    balancer.post.preview(task, result, 0, 20)
    wait_until(lambda: [each.message for sent in balancer.calls[-1:] for each in sent] == [preview], "the preview")
    return [message for sent in balancer.take() for message in sent][:-1]


def test_each_checkpoint_is_sent_unless_the_one_before_is_still_being_saved() -> None:
    balancer, gate, saves = Balancer(), threading.Event(), list[int]()
    task = Assignment("a", 1, INPUTS)

    def save(step: int, size: int = 3) -> Checkpoint | None:
        saves.append(step)
        gate.wait(10.0)
        if step == 4:
            return None
        return Checkpoint(step, [bytes(size), b"x"])

    balancer.post.checkpoint(task, lambda: save(1), 20)
    wait_until(lambda: saves == [1], "the first")
    balancer.post.checkpoint(task, lambda: save(2), 20)
    gate.set()
    wait_until(lambda: len(balancer.calls) == 1, "its checkpoint")
    assert balancer.take() == [[Progress("a", 1, 1, 20, frames=2)]]
    for step, size in ((3, MAX_BYTES), (4, 3), (5, MAX_BYTES - 1)):
        balancer.post.checkpoint(task, partial(save, step, size), 20)
        assert wait_for_preview(balancer, task) == ([Progress("a", 1, 5, 20, frames=2)] if step == 5 else [])
    balancer.post.preview(task, partial(result, MAX_BYTES + 1), 0, 20)
    balancer.post.shutdown()
    assert (saves, balancer.take()) == ([1, 3, 4, 5], [])


def test_an_earlier_attempt_does_not_end_the_later_one() -> None:
    """A task that was assigned again while its result was being made."""
    balancer, gates = Balancer(), {attempt: threading.Event() for attempt in (1, 2)}

    def make(attempt: int) -> TaskResult:
        gates[attempt].wait(PATIENCE_S)
        return result()

    balancer.post.offer(2)
    for attempt in gates:
        task = Assignment("a", attempt, INPUTS)
        balancer.post.report((), [FinishedRow(task, partial(make, attempt), 20)])
    gates[1].set()
    wait_until(
        lambda: any(isinstance(each.message, Finished) for call in balancer.calls for each in call), "the first result"
    )
    assert dict(balancer.post.finishing) == {"a": 2}
    assert hello(balancer, slots=2) == ([("a", 2)], [], 3), "its place is not free yet"
    gates[2].set()
    balancer.post.shutdown()
    assert not balancer.post.finishing
