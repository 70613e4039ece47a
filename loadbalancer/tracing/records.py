"""What the balancer tells the exporter process, which makes the spans of it.

Times are seconds on the balancer's monotonic clock; `clock_offset` makes Unix time of them. It is the same for all
records of a request, so that its spans are in order whatever happens to the clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

AttributeValue = str | int | float | bool


class RequestRecord(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A request that has been answered."""

    trace_id: str
    span_id: str
    parent_id: str
    clock_offset: float
    method: str
    #: Path with its parameters as names.
    route: str
    started: float
    ended: float
    status: int
    attributes: Mapping[str, AttributeValue]
    #: When its tasks were queued, and the last of them ended; None: it had none.
    submitted: float | None = None
    last_ended: float | None = None
    error: str = ""


class StateChange(msgspec.Struct, frozen=True, array_like=True):
    """A transition of a task: its new state, and its worker and step at that time."""

    at: float
    state: str
    worker: str | None
    step: int
    #: Why it went back to the queue.
    reason: str


class TaskRecord(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A task that has ended. Its transitions are complete, but for the first of a very long list."""

    trace_id: str
    parent_id: str
    clock_offset: float
    task: str
    model: str
    created: float
    steps: int
    changes: Sequence[StateChange]


class SpanRecord(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Any other span: a job, a webhook, a request to another server."""

    trace_id: str
    span_id: str
    parent_id: str
    clock_offset: float
    name: str
    kind: Literal["internal", "client"]
    started: float
    ended: float
    attributes: Mapping[str, AttributeValue]
    error: str = ""


TraceRecord = RequestRecord | TaskRecord | SpanRecord
