"""The requests of a recorded day."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.simulator.trace_rows import InvalidTrace, convert_rows, parse_rows, read_text
from scripts.loadtest_lib.plan import RecordedRequest

_SIZE = re.compile(r"\d+x\d+")
#: A recording is sent to Locust's processes as a whole.
_MAX_REQUESTS = 1_000_000


def read_recording(file: Path, compression: float) -> tuple[RecordedRequest, ...]:
    """Return the requests of a recording by `server.record_arrivals`, by time from the first one.

    `compression` 24 plays a day in an hour. A request has a line for each image. Raises `InvalidTrace`.
    """
    rows, _ = convert_rows(file, parse_rows(read_text(file)), _request, max_bad_lines=0)
    if not rows:
        raise InvalidTrace(f"{file} has no requests")
    if len(rows) > _MAX_REQUESTS:
        raise InvalidTrace(f"{file} has {len(rows)} lines; allowed: {_MAX_REQUESTS}")
    start = min(row.at_s for row in rows)
    # Images of one request arrive at the same time and are equal in all columns.
    requests = [
        request._replace(at_s=(request.at_s - start) / compression)
        for request, lines in Counter(rows).items()
        for _ in range(max(round(lines / request.n), 1))
    ]
    requests.sort(key=lambda request: request.at_s)
    return tuple(requests)


def _request(row: Mapping[str, Any]) -> RecordedRequest:
    missing = [name for name in ("arrived", "model", "steps", "shape", "request_tasks") if name not in row]
    if missing:
        raise ValueError(f"the column {missing[0]} is missing; a recording is a file of `server.record_arrivals`")
    size = _SIZE.search(str(row["shape"]))
    count = max(int(row["request_tasks"]), 1)
    return RecordedRequest(float(row["arrived"]), str(row["model"]), int(row["steps"]), size[0] if size else "", count)
