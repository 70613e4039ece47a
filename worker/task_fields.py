"""The fields of log lines about a task."""

from __future__ import annotations

from collections.abc import Mapping

from wire.messages import Assignment


def task_fields(assignment: Assignment) -> Mapping[str, str]:
    """Return its name, and the ids of its request and trace where it has them, for `extra` of a log call."""
    return {
        "task": assignment.task,
        "request_id": assignment.request_id,
        "trace_id": assignment.traceparent[3:35],
    }
