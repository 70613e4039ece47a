"""The context of a job: the request that has created it, maybe before a restart, and the span of the job itself."""

from __future__ import annotations

from loadbalancer.context.request_context import RequestContext
from loadbalancer.context.trace_context import TraceContext, parse_traceparent
from loadbalancer.storage.records import JobRecord

_PREFIX = "job_"
_SPAN_DIGITS = 16


def job_trace(record: JobRecord) -> TraceContext | None:
    """Return the span of the job, whose id follows from that of the job; None if its request had no trace."""
    caller = parse_traceparent(record.order.traceparent)
    return None if caller is None else caller.child(record.id.removeprefix(_PREFIX)[:_SPAN_DIGITS])


def job_context(record: JobRecord, clock_offset: float) -> RequestContext:
    """`clock_offset` makes Unix time of the times on the scheduler's clock."""
    return RequestContext(record.order.request_id, job_trace(record), clock_offset)
