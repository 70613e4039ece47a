"""The spans of requests, tasks and jobs, made of what the balancer has recorded. Pure.

POST /v1/images/generations     from the head of the request to the end of its response
  receive                       until its tasks are queued: reading, validation, decoding of source images
  queue, worker, queue, worker  of each task: one `worker` span per stay, linked to the one before
  render                        from the end of the last task to the end of the response
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from loadbalancer.tracing import attributes as names
from loadbalancer.tracing.records import (
    AttributeValue,
    RequestRecord,
    SpanRecord,
    StateChange,
    TaskRecord,
    TraceRecord,
)

#: Statuses from here on are errors of the server.
_SERVER_ERROR = 500


class SpanEvent(NamedTuple):
    """Something that happened at one time of a span, in Unix nanoseconds."""

    name: str
    at_ns: int
    attributes: Mapping[str, AttributeValue]


class FinishedSpan(NamedTuple):
    """A span with Unix nanoseconds. Ids are hexadecimal digits; `link_id` is a span of the same trace."""

    name: str
    kind: Literal["server", "internal", "client"]
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, AttributeValue]
    events: tuple[SpanEvent, ...] = ()
    link_id: str = ""
    is_error: bool = False


def spans_of(record: TraceRecord, new_id: Callable[[], str]) -> list[FinishedSpan]:
    """Return the spans of a record, the outer one first. `new_id` makes the ids of those that have none yet."""
    if isinstance(record, RequestRecord):
        return list(_request_spans(record, new_id))
    if isinstance(record, TaskRecord):
        return _TaskSpans(record, new_id).spans()
    return [_other_span(record)]


def _nanoseconds(record: TraceRecord, at: float) -> int:
    return round((at + record.clock_offset) * 1e9)


def _request_spans(record: RequestRecord, new_id: Callable[[], str]) -> Iterator[FinishedSpan]:
    attributes: dict[str, AttributeValue] = {
        names.METHOD: record.method,
        names.ROUTE: record.route,
        names.STATUS: record.status,
    }
    if record.error:
        attributes[names.ERROR_TYPE] = record.error
    if record.route in names.OPERATIONS and record.method == "POST":
        operation, output = names.OPERATIONS[record.route]
        attributes[names.OPERATION] = operation
        if output:
            attributes[names.OUTPUT_TYPE] = output
    start, end = _nanoseconds(record, record.started), _nanoseconds(record, record.ended)
    yield FinishedSpan(
        f"{record.method} {record.route}",
        "server",
        record.trace_id,
        record.span_id,
        record.parent_id,
        start,
        end,
        attributes | dict(record.attributes),
        is_error=record.status >= _SERVER_ERROR or (bool(record.error) and record.status < 400),
    )

    def part(name: str, begin: int, until: int) -> FinishedSpan:
        return FinishedSpan(name, "internal", record.trace_id, new_id(), record.span_id, begin, until, {})

    if record.submitted is not None:
        yield part("receive", start, _nanoseconds(record, record.submitted))
        if record.last_ended is not None and not record.error:
            yield part("render", _nanoseconds(record, record.last_ended), end)


def _other_span(record: SpanRecord) -> FinishedSpan:
    attributes = dict(record.attributes)
    if record.error:
        attributes[names.ERROR_TYPE] = record.error
    return FinishedSpan(
        record.name,
        record.kind,
        record.trace_id,
        record.span_id,
        record.parent_id,
        _nanoseconds(record, record.started),
        _nanoseconds(record, record.ended),
        attributes,
        is_error=bool(record.error),
    )


class _TaskSpans:
    """Follows the states of a task."""

    def __init__(self, record: TaskRecord, new_id: Callable[[], str]) -> None:
        self._record = record
        self._new_id = new_id
        self._spans: list[FinishedSpan] = []
        self._queued_at = record.created
        self._events: list[SpanEvent] = []
        self._assigned: StateChange | None = None
        #: Its start on the worker that has it, and the span of the worker before.
        self._running: StateChange | None = None
        self._previous_id = ""

    def spans(self) -> list[FinishedSpan]:
        for change in self._record.changes:
            if change.state == "assigned":
                self._assigned = change
                self._add_event("assigned", change, {names.WORKER: change.worker or ""})
            elif change.state == "running":
                self._start(change)
            elif change.state == "queued":
                self._requeue(change)
            else:
                self._end(change)
        return self._spans

    def _start(self, change: StateChange) -> None:
        self._leave_queue(change, "started")
        self._running = change

    def _requeue(self, change: StateChange) -> None:
        if self._running is None:
            self._add_event(change.reason, change, {})
        else:
            self._leave_worker(change, change.reason)
            self._queued_at = change.at
        self._assigned = None

    def _end(self, change: StateChange) -> None:
        if self._running is None and self._assigned is not None and change.state in ("done", "failed"):
            # Of a very short task, its worker does not report the start.
            self._events.pop()
            self._start(self._assigned)
        if self._running is not None:
            self._leave_worker(change, change.state)
        else:
            self._leave_queue(change, change.state)

    def _leave_queue(self, change: StateChange, outcome: str) -> None:
        self._add("queue", self._queued_at, change.at, {names.OUTCOME: outcome}, tuple(self._events))
        self._events.clear()

    def _leave_worker(self, change: StateChange, outcome: str) -> None:
        started = self._running
        assert started is not None
        step = self._record.steps if outcome == "done" else change.step
        attributes: dict[str, AttributeValue] = {
            names.OUTCOME: outcome,
            names.WORKER: started.worker or "",
            names.STEPS: max(step - started.step, 0),
        }
        if started.step:
            attributes[names.RESUMED_AT] = started.step
        link = self._previous_id
        self._previous_id = self._add(
            "worker", started.at, change.at, attributes, link=link, failed=outcome == "failed"
        )
        self._running = None

    def _add_event(self, name: str, change: StateChange, attributes: Mapping[str, AttributeValue]) -> None:
        self._events.append(SpanEvent(name, _nanoseconds(self._record, change.at), attributes))

    def _add(
        self,
        name: str,
        start: float,
        end: float,
        attributes: dict[str, AttributeValue],
        events: tuple[SpanEvent, ...] = (),
        *,
        link: str = "",
        failed: bool = False,
    ) -> str:
        record, span_id = self._record, self._new_id()
        own = {names.TASK: record.task, names.REQUEST_MODEL: record.model}
        span = FinishedSpan(
            name,
            "internal",
            record.trace_id,
            span_id,
            record.parent_id,
            _nanoseconds(record, start),
            _nanoseconds(record, end),
            own | attributes,
            events,
            link,
            failed,
        )
        self._spans.append(span)
        return span_id
