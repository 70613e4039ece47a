"""The request or job that the current code works for: its ids and times, for logs and traces. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

import msgspec

from loadbalancer.context.trace_context import TraceContext


class RequestContext(msgspec.Struct, eq=False):
    """One request or job. Times are seconds on the scheduler's clock."""

    request_id: str
    #: Its span, or that of its client where no spans are written; None: neither.
    trace: TraceContext | None = None
    #: Makes Unix time of the times on the scheduler's clock.
    clock_offset: float = 0.0
    #: Of its tasks; empty if it has none.
    model: str = ""
    tasks: int = 0
    #: When its first tasks were queued, and its latest one ended.
    submitted_at: float | None = None
    last_ended_at: float | None = None
    #: The longest wait and run of its tasks; None until one has ended.
    waited_s: float | None = None
    ran_s: float | None = None
    #: Time of its first token or chunk.
    first_output_at: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    #: Code or type of the error that it was answered with.
    error_code: str = ""

    @property
    def traceparent(self) -> str:
        """The header for those that it calls; empty without a trace."""
        return "" if self.trace is None else self.trace.traceparent

    def on_submit(self, model: str, tasks: int, now: float) -> None:
        self.model = model
        self.tasks += tasks
        if self.submitted_at is None:
            self.submitted_at = now

    def on_output(self, now: float) -> None:
        """Note a token or chunk; only the first counts."""
        if self.first_output_at is None:
            self.first_output_at = now

    def on_usage(self, prompt: int, generated: int) -> None:
        """Note the tokens of a text that has ended."""
        self.input_tokens += prompt
        self.output_tokens += generated

    def on_error(self, code: str) -> None:
        self.error_code = code

    def on_task_end(self, created: float, started: float | None, now: float) -> None:
        """Note the end of a task. `started`: None for one that has never run."""
        waited_s, ran_s = (now - created, 0.0) if started is None else (started - created, now - started)
        self.waited_s = waited_s if self.waited_s is None else max(self.waited_s, waited_s)
        self.ran_s = ran_s if self.ran_s is None else max(self.ran_s, ran_s)
        self.last_ended_at = now


#: None outside of requests and jobs.
CURRENT: ContextVar[RequestContext | None] = ContextVar("request", default=None)


def log_fields() -> Mapping[str, str]:
    """Return the fields of log lines that are written for the current request."""
    context = CURRENT.get()
    if context is None:
        return {}
    if context.trace is None:
        return {"request_id": context.request_id}
    return {"request_id": context.request_id, "trace_id": context.trace.trace_id}
