"""Writes the traces of requests, tasks and jobs: all that the balancer knows of them, with the times at which it was.

Workers write no spans. They report what they do anyhow, so that no span is lost with a worker.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import Literal, Protocol

from loadbalancer.context.request_context import RequestContext
from loadbalancer.context.trace_context import TraceContext, parse_traceparent
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import Reason, TaskState, reason_text
from loadbalancer.tracing import attributes as names
from loadbalancer.tracing.records import AttributeValue, RequestRecord, SpanRecord, StateChange, TaskRecord, TraceRecord


class RecordSink(Protocol):
    """Takes the records of sampled traces."""

    counters: Counter[str]

    def put(self, record: TraceRecord) -> None:
        """Take the record, or drop it and count that. Never waits, and raises nothing."""


class Sampler(Protocol):
    """Decides which traces are written."""

    def __call__(self, caller: TraceContext | None, trace_id: str) -> bool:
        """Return whether the spans of this trace are written."""


class TraceLimit:
    """Bounds the traces that begin within a second of any monotonic clock: spans cost more than short requests."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._second = self._begun = 0

    def take(self, now: float) -> bool:
        """Return whether one more may begin, and count it."""
        if self.is_reached(now):
            return False
        self._begun += 1
        return True

    def is_reached(self, now: float) -> bool:
        """Return whether no more may begin within this second."""
        second = int(now)
        if second != self._second:
            self._second, self._begun = second, 0
        return self._begun >= self._per_s


class Tracer:
    """Begins and ends spans. All methods are called in the event loop."""

    def __init__(self, sampler: Sampler, sink: RecordSink, max_per_s: int) -> None:
        self._is_sampled = sampler
        self._sink = sink
        self._limit = TraceLimit(max_per_s)

    @property
    def counters(self) -> Mapping[str, int]:
        """Traces beyond the limit, and records that were dropped, because the collector or the machine is too slow."""
        return self._sink.counters

    def begin(self, request_id: str, traceparent: str) -> RequestContext:
        """Return the context of a request that has just arrived.

        Beyond the limit, a request whose client sends no `traceparent` belongs to no trace.
        """
        caller, now = parse_traceparent(traceparent) if traceparent else None, time.monotonic()
        trace_id = caller.trace_id if caller is not None else f"{random.getrandbits(128) or 1:032x}"
        if caller is None and self._limit.is_reached(now):
            # A trace that the sampler leaves out is not lost through the limit.
            self._sink.counters["traces_over_limit"] += self._is_sampled(None, trace_id)
            return RequestContext(request_id)
        parent_id = caller.span_id if caller is not None else ""
        is_sampled = self._is_sampled(caller, trace_id)
        if is_sampled and not self._limit.take(now):
            is_sampled = False
            self._sink.counters["traces_over_limit"] += 1
        trace = TraceContext(trace_id, new_span_id(), is_sampled, parent_id)
        return RequestContext(request_id, trace, time.time() - now)

    def end_request(
        self, context: RequestContext, method: str, route: str, status: int, started: float, *, owner: str, size: int
    ) -> None:
        """Write the span of a request that has been answered just now. `size`: bytes of the response."""
        trace = context.trace
        if trace is None or not trace.is_sampled:
            return
        attributes: dict[str, AttributeValue] = {names.REQUEST_ID: context.request_id, names.RESPONSE_BYTES: size}
        if owner:
            attributes[names.OWNER] = owner
        self._sink.put(
            RequestRecord(
                trace.trace_id,
                trace.span_id,
                trace.parent_id,
                context.clock_offset,
                method,
                route,
                started,
                time.monotonic(),
                status,
                attributes | _work_attributes(context),
                context.submitted_at,
                context.last_ended_at,
                context.error_code,
            )
        )

    def end_task(self, task: Task) -> None:
        """Write the spans of a task that has ended."""
        context = task.context
        if context is None or (trace := context.trace) is None or not trace.is_sampled:
            return
        changes = [
            StateChange(at, state.value, worker, step, _short(reason) if state is TaskState.QUEUED else "")
            for at, state, reason, worker, step in task.history
        ]
        self._sink.put(
            TaskRecord(
                trace.trace_id,
                trace.span_id,
                context.clock_offset,
                task.id,
                task.model,
                task.created,
                task.steps,
                changes,
            )
        )

    def end_job(self, context: RequestContext, job: str, model: str, created: float, error: str) -> None:
        """Write the span of a job that has ended just now. `created`: in Unix time, maybe before a restart."""
        if context.trace is not None:
            attributes = {names.JOB: job, names.REQUEST_MODEL: model, names.REQUEST_ID: context.request_id}
            own = attributes | _work_attributes(context)
            self.end_span(context.trace, "job", "internal", created, max(time.time(), created), own, error)

    def end_span(
        self,
        trace: TraceContext,
        name: str,
        kind: Literal["internal", "client"],
        started: float,
        ended: float,
        attributes: Mapping[str, AttributeValue],
        error: str,
        clock_offset: float = 0.0,
    ) -> None:
        """Write any other span. `clock_offset` makes Unix time of its times."""
        if trace.is_sampled:
            ids = trace.trace_id, trace.span_id, trace.parent_id
            self._sink.put(SpanRecord(*ids, clock_offset, name, kind, started, ended, attributes, error))


def request_context(tracer: Tracer | None, request_id: str, traceparent: str) -> RequestContext:
    """Return the context of a request. Without a tracer, the trace of its client passes through."""
    if tracer is None:
        return RequestContext(request_id, parse_traceparent(traceparent))
    return tracer.begin(request_id, traceparent)


def new_span_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"


def _work_attributes(context: RequestContext) -> dict[str, AttributeValue]:
    """What the tasks of a request have cost."""
    found: dict[str, AttributeValue] = {}
    if context.tasks:
        found[names.REQUEST_MODEL], found[names.TASKS] = context.model, context.tasks
    if context.waited_s is not None and context.ran_s is not None:
        found[names.TIME_IN_QUEUE], found[names.RUN_TIME] = context.waited_s, context.ran_s
    if context.input_tokens:
        found[names.INPUT_TOKENS], found[names.OUTPUT_TOKENS] = context.input_tokens, context.output_tokens
    if context.first_output_at is not None and context.submitted_at is not None:
        found[names.TIME_TO_FIRST_TOKEN] = context.first_output_at - context.submitted_at
    return found


def _short(reason: Reason) -> str:
    """Why a task has left its worker, without the texts of workers and engines, which may quote their inputs."""
    text = reason_text(reason)
    if text.startswith("preempted by "):
        return "preempted"
    return "invalid_result" if " returned no valid result: " in text else "worker_lost"
