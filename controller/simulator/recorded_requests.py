"""The requests in the arrival logs of a server: their work for a simulation, and the waits that they really had."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from controller.simulator.model_sim import quantile
from controller.simulator.scenarios import Traffic
from controller.simulator.trace_rows import InvalidTrace, parse_rows, read_text
from wire.simulation import MeasuredWaits

#: More would take minutes to simulate.
MAX_REQUESTS = 300_000
#: Work of a request if none was measured.
_WORK_S = 1.0


class RecordedRequest(NamedTuple):
    """A request of the log. `at` is in Unix seconds; work and wait are None if no worker has started it."""

    at: float
    work_s: float | None
    waited_s: float | None


def read_logs(logs: Sequence[Path], model: str, since: float, until: float) -> list[RecordedRequest]:
    """Return the model's requests of this time, in order of arrival. Raises `InvalidTrace`.

    Lines that cannot be read are left out, such as the last one of a server that was killed.
    """
    found: list[RecordedRequest] = []
    for log in logs:
        for row in parse_rows(read_text(log)):
            if isinstance(row.values, ValueError) or row.values.get("model") != model:
                continue
            request = _request(row.values)
            if request is not None and since <= request.at < until:
                found.append(request)
                if len(found) > MAX_REQUESTS:
                    raise InvalidTrace(f"More than {MAX_REQUESTS:,} requests were recorded. Choose a shorter time.")
    found.sort(key=lambda one: one.at)
    return found


def _request(row: Mapping[str, Any]) -> RecordedRequest | None:
    """Return the request of a row; None for one that left before any worker was due to start it."""
    try:
        at, work_s, waited_s = float(row["arrived"]), _seconds(row["exec_s"]), _seconds(row["waited_s"])
        outcome = row["outcome"]
    except (KeyError, TypeError, ValueError):
        return None
    if not math.isfinite(at) or (work_s is None and outcome == "cancelled"):
        return None
    return RecordedRequest(at, work_s, None if work_s is None else waited_s)


def _seconds(text: str) -> float | None:
    """Return the number. Raises `ValueError` unless it is finite and not negative."""
    if not text:
        return None
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(f"{text} is no duration")
    return value


def traffic_from(recorded: Sequence[RecordedRequest], start: float) -> Traffic:
    """Return the requests as traffic from `start` on. One that never started has the mean work of the others."""
    known = [one.work_s for one in recorded if one.work_s is not None]
    mean_s = sum(known) / len(known) if known else _WORK_S
    work = [mean_s if one.work_s is None else one.work_s for one in recorded]
    return Traffic([one.at - start for one in recorded], work)


def measured_waits(recorded: Sequence[RecordedRequest], max_wait_s: float) -> MeasuredWaits:
    """Return what was recorded of the waits. A request that never started has waited forever."""
    waits = sorted(_waits(recorded))
    return MeasuredWaits(
        in_time=sum(wait <= max_wait_s for wait in waits) / len(waits),
        wait_p50_s=_finite(quantile(waits, 0.5)),
        wait_p99_s=_finite(quantile(waits, 0.99)),
        unserved=sum(math.isinf(wait) for wait in waits),
    )


def _waits(recorded: Sequence[RecordedRequest]) -> Iterator[float]:
    return (math.inf if one.waited_s is None else one.waited_s for one in recorded)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
