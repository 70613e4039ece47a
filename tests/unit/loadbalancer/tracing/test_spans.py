"""The spans of tasks and requests, from what the balancer records."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.tracing.records import RequestRecord, SpanRecord, StateChange, TaskRecord, TraceRecord
from loadbalancer.tracing.spans import FinishedSpan, spans_of
from wire.inputs import CallInputs, Part

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OFFSET = 1_700_000_000.0


def numbers() -> Callable[[], str]:
    ids = itertools.count(1)
    return lambda: f"{next(ids):016x}"


def task_spans(*changes: tuple[float, str, str | None, int, str], steps: int = 20) -> list[FinishedSpan]:
    record = TaskRecord(TRACE, PARENT, OFFSET, "t", "m", 1.0, steps, [StateChange(*each) for each in changes])
    return spans_of(record, numbers())


def seconds(span: FinishedSpan) -> tuple[float, float]:
    return span.start_ns / 1e9 - OFFSET, span.end_ns / 1e9 - OFFSET


Change = tuple[float, str, str | None, int, str]
#: Name, start, end, outcome.
Expected = tuple[str, float, float, str]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            [(2.0, "assigned", "a", 0, ""), (3.0, "running", "a", 0, ""), (5.0, "done", "a", 19, "")],
            [("queue", 1.0, 3.0, "started"), ("worker", 3.0, 5.0, "done")],
        ),
        (  # moved
            [
                (2.0, "assigned", "a", 0, ""),
                (2.0, "running", "a", 0, ""),
                (4.0, "queued", "a", 8, "preempted"),
                (5.0, "assigned", "b", 5, ""),
                (6.0, "running", "b", 5, ""),
                (9.0, "done", "b", 20, ""),
            ],
            [
                ("queue", 1.0, 2.0, "started"),
                ("worker", 2.0, 4.0, "preempted"),
                ("queue", 4.0, 6.0, "started"),
                ("worker", 6.0, 9.0, "done"),
            ],
        ),
        (  # its worker was lost before it had started
            [
                (2.0, "assigned", "a", 0, ""),
                (3.0, "queued", "a", 0, "worker_lost"),
                (4.0, "assigned", "b", 0, ""),
                (5.0, "running", "b", 0, ""),
                (6.0, "failed", "b", 3, ""),
            ],
            [("queue", 1.0, 5.0, "started"), ("worker", 5.0, 6.0, "failed")],
        ),
        (  # so short that its start is not reported
            [(2.0, "assigned", "a", 0, ""), (4.0, "done", "a", 0, "")],
            [("queue", 1.0, 2.0, "started"), ("worker", 2.0, 4.0, "done")],
        ),
        ([(4.0, "cancelled", None, 0, "")], [("queue", 1.0, 4.0, "cancelled")]),
        ([(2.0, "assigned", "a", 0, ""), (4.0, "expired", "a", 0, "")], [("queue", 1.0, 4.0, "expired")]),
        (
            [(2.0, "assigned", "a", 0, ""), (2.0, "running", "a", 0, ""), (4.0, "cancelled", "a", 7, "")],
            [("queue", 1.0, 2.0, "started"), ("worker", 2.0, 4.0, "cancelled")],
        ),
    ],
)
def test_spans_of_a_task(changes: list[Change], expected: list[Expected]) -> None:
    spans = task_spans(*changes)
    found = [(span.name, *map(pytest.approx, seconds(span)), span.attributes["muster.outcome"]) for span in spans]
    assert expected == found
    assert {(span.trace_id, span.parent_id) for span in spans} == {(TRACE, PARENT)}
    assert [span.is_error for span in spans] == [each[3] == "failed" for each in expected]


def test_stays_are_linked_and_say_what_they_did() -> None:
    spans = task_spans(
        (2.0, "assigned", "a", 0, ""),
        (2.5, "running", "a", 0, ""),
        (4.0, "queued", "a", 8, "worker_lost"),
        (5.0, "assigned", "b", 5, ""),
        (5.0, "running", "b", 5, ""),
        (9.0, "done", "b", 20, ""),
    )
    first, second = (span for span in spans if span.name == "worker")
    assert (first.link_id, second.link_id) == ("", first.span_id)
    assert first.attributes == {
        "muster.task": "t",
        "gen_ai.request.model": "m",
        "muster.outcome": "worker_lost",
        "muster.worker": "a",
        "muster.steps": 8,
    }
    assert second.attributes["muster.worker"] == "b"
    assert (second.attributes["muster.steps"], second.attributes["muster.resumed_at"]) == (15, 5)
    assert [event.name for event in spans[0].events] == ["assigned"]


@given(st.lists(st.tuples(st.sampled_from(list(TaskState)), st.floats(0, 10), st.integers(0, 9)), max_size=30))
def test_any_history_gives_spans_in_order(moves: list[tuple[TaskState, float, int]]) -> None:
    """Whatever transitions a task makes, its spans cover its time without gaps, and never overlap."""
    task = Task("t", "m", CallInputs((Part(),)), 1.0, 100.0)
    now = 1.0
    for state, after, step in moves:
        now += after
        task.step = step
        task.worker = None if state is TaskState.QUEUED else "w"
        try:
            task.transition(state, now, "why")
        except Exception:
            continue
    if not task.is_finished:
        task.transition(TaskState.CANCELLED, now, "at the end")
    changes = [(at, state.value, worker, step, "lost") for at, state, _, worker, step in task.history]
    spans = task_spans(*changes)
    assert seconds(spans[0])[0] == pytest.approx(1.0)
    assert all(one.end_ns == other.start_ns for one, other in itertools.pairwise(spans))
    assert seconds(spans[-1])[1] == pytest.approx(task.history[-1][0])
    assert [span.name for span in spans] == ["queue", "worker"] * (len(spans) // 2) + ["queue"] * (len(spans) % 2)


REQUEST = RequestRecord(
    TRACE, "1" * 16, PARENT, OFFSET, "POST", "/v1/chat/completions", 1.0, 9.0, 200, {"x": 1}, 2.0, 8.0
)


@pytest.mark.parametrize(
    ("changes", "names", "is_error"),
    [
        ({}, ["receive", "render"], False),
        ({"submitted": None, "last_ended": None}, [], False),
        ({"status": 429, "error": "queue_full", "submitted": None, "last_ended": None}, [], False),
        ({"status": 503, "error": "unavailable", "submitted": None, "last_ended": None}, [], True),
        ({"status": 500, "error": "task_failed"}, ["receive"], True),
        ({"status": 200, "error": "task_failed"}, ["receive"], True),  # a stream that has ended with an error
        ({"status": 499, "error": ""}, ["receive", "render"], False),
    ],
)
def test_spans_of_a_request(changes: dict[str, object], names: list[str], *, is_error: bool) -> None:
    outer, *parts = spans_of(msgspec.structs.replace(REQUEST, **changes), numbers())
    assert (outer.name, outer.kind, outer.is_error) == ("POST /v1/chat/completions", "server", is_error)
    assert outer.attributes["gen_ai.operation.name"] == "chat"
    assert outer.attributes.get("error.type", "") == changes.get("error", "")
    assert [part.name for part in parts] == names
    assert {part.parent_id for part in parts} <= {outer.span_id}


@pytest.mark.parametrize(
    "record",
    [REQUEST, SpanRecord(TRACE, "2" * 16, PARENT, 0.0, "job", "internal", 1.0, 2.0, {"a": "b"}, "expired")],
)
def test_records_survive_the_pipe(record: TraceRecord) -> None:
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=TraceRecord)
    assert spans_of(decoded, numbers()) == spans_of(record, numbers())
