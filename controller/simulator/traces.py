"""Readers of recorded traffic. The columns of a file identify its format.

| file | arrival time | work of a request |
|---|---|---|
| Muster CSV | `arrival_s` | `exec_s`, or `steps` (and pixels), or `input_tokens`, `output_tokens`; `model` |
| arrival log of the load balancer | `arrived` | `ran_s`, else `steps` and `shape`; `model` |
| access log of nginx, combined format | `$time_local` less `$request_time` | `$request_time` |
| JSON lines of a server | `time`, less `duration_s` | `duration_s`; `model` |
| GenTD26 `lora_request_trace.csv` | `gmt_create` | `exec_time_seconds` |
| GenTD26 `pipeline_inference_data_anon.csv` | `timestamp_anon` | `value`, in milliseconds |
| Azure LLM 2023 and 2024 | `TIMESTAMP` | `ContextTokens` and `GeneratedTokens` |
| ServeGen, Mooncake and the like, CSV or JSON lines | `timestamp` | `input_*`, and `output_tokens` or `output_length` |
| Locust `_stats_history.csv` | `Timestamp` | none; rows count requests, which are spread evenly between two rows |

Files may be compressed (`.gz`) or the first data file of a `.tar.gz`.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from configs.text import clip, escaped
from controller.simulator.request_work import RequestCosts, number, urgency_of, work_of
from controller.simulator.scenarios import TimedRequest, Traffic, traffic_of
from controller.simulator.trace_rows import InvalidTrace, TraceRow, convert_rows, is_csv, parse_rows, read_text
from controller.simulator.urgency import Urgency

#: Columns with the arrival time.
_TIME_COLUMNS = ("arrival_s", "arrived", "gmt_create", "timestamp_anon", "TIMESTAMP", "timestamp")
#: Column with the time of the answer, in logs of servers.
_END_COLUMN = "time"
_DAY_S = 86_400.0
#: In place of the work of a request without a size.
_UNKNOWN_WORK = -1.0
#: Times between these are dates, the years 1973 to 2096 in Unix seconds. Smaller ones count from a beginning.
_FIRST_DATE_S, _LAST_DATE_S = 1e8, 4e9
#: A longer trace has times in another unit.
_MAX_SPAN_S = 366 * _DAY_S
#: Why a log may have none.
_COUNTED = "; of an access log, answered POST requests count, and of Muster's own those for a model"

#: Characters of a file that a message shows.
_MAX_SHOWN = 200


def _ignore(message: str) -> None:
    """Accept a warning and do nothing."""
    del message


class TraceRequest(NamedTuple):
    """One request of a trace."""

    at: float
    work_s: float
    model: str
    urgency: Urgency = Urgency()


class RecordedTrace(NamedTuple):
    """The requests of a file by model, and the Unix time at which they begin; None if the file does not tell."""

    traffic: dict[str, Traffic]
    start_unix_s: float | None = None


def read_trace(file: Path, costs: RequestCosts | None = None, **options: Any) -> dict[str, Traffic]:
    """Return the requests of `read_recorded_trace` by model. Raises `InvalidTrace`."""
    return read_recorded_trace(file, costs, **options).traffic


def read_recorded_trace(
    file: Path,
    costs: RequestCosts | None = None,
    *,
    stretch: float = 1.0,
    bucket_s: float = 0.0,
    seed: int = 0,
    max_bad_lines: int = 0,
    warn: Callable[[str], None] = _ignore,
) -> RecordedTrace:
    """Return the requests, with times relative to the first one or as in `arrival_s`. Raises `InvalidTrace`.

    `stretch` multiplies all times. With times rounded to `bucket_s`, each request gets a random time in its bucket.
    Up to `max_bad_lines` lines are left out, which `warn` receives.
    """
    costs = costs or RequestCosts()
    text = read_text(file)
    rows = parse_rows(text)
    bad: list[TraceRow] = []
    first: Mapping[str, Any] | None = None
    for row in rows:
        if not isinstance(row.values, ValueError):
            first = row.values
            rows = itertools.chain(bad, [row], rows)
            break
        bad.append(row)
    if first is None:
        convert_rows(file, bad, dict, max_bad_lines)
        raise InvalidTrace(f"{file} has no requests{'' if is_csv(text) else _COUNTED}")
    if "Total Request Count" in first:
        counts, errors = convert_rows(file, rows, _locust_count, max_bad_lines)
        requests = list(_locust_requests(counts))
    else:
        column = _find_column(first, (*_TIME_COLUMNS, _END_COLUMN), file)
        requests, errors = convert_rows(file, rows, lambda values: _request(values, column, costs), max_bad_lines)
    for error in errors:
        warn(f"left out: {error}")
    unknown = sum(one.work_s == _UNKNOWN_WORK for one in requests)
    if unknown:
        warn(
            f"{unknown} of {len(requests)} requests in {file} have no size; "
            f"each counts as {costs.request_s:g} s of work (--request-s)"
        )
        requests = [one._replace(work_s=costs.request_s) if one.work_s == _UNKNOWN_WORK else one for one in requests]
    first_at = min((one.at for one in requests), default=0.0)
    start_unix_s = next((at for at in (first_at, first_at * stretch) if _FIRST_DATE_S <= at < _LAST_DATE_S), None)
    relative = "arrival_s" in first and start_unix_s is None
    traffic = by_model(requests, stretch, bucket_s, seed, absolute=relative)
    _check_span(file, traffic)
    return RecordedTrace(traffic, start_unix_s)


def _check_span(file: Path, traffic: Mapping[str, Traffic]) -> None:
    span_s = max((one.times[-1] for one in traffic.values()), default=0.0)
    if span_s > _MAX_SPAN_S:
        raise InvalidTrace(
            f"{file} spans {round(span_s / _DAY_S, 0):.10g} days, and {_MAX_SPAN_S / _DAY_S:.0f} are allowed; "
            "if its unit is a millisecond, use --stretch 0.001"
        )


def _find_column(row: Mapping[str, Any], names: Iterable[str], file: Path) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        columns = clip(escaped(", ".join(map(str, row))), _MAX_SHOWN)
        hint = "; commas separate the columns of CSV" if len(row) == 1 else ""
        raise InvalidTrace(f"{file} has none of the columns {', '.join(names)}; its columns are {columns}{hint}")
    return found


def _request(row: Mapping[str, Any], column: str, costs: RequestCosts) -> TraceRequest:
    """Return the request of a row with its time in `column`. Raises `ValueError`."""
    model = row.get("model") or row.get("checkpoint_model_version_id") or ""
    at = _parse_time(row, column)
    if column == _END_COLUMN and row.get("duration_s") is not None:
        at -= number(row, "duration_s")
    if column == "arrival_s" and at < 0:
        raise ValueError(f"arrival_s ({at:g}) is negative")
    work_s = work_of(row, costs)
    return TraceRequest(at, _UNKNOWN_WORK if work_s is None else work_s, str(model), urgency_of(row))


def parse_start(text: str) -> float:
    """Return a Unix time from a date or a number. Raises `ValueError`."""
    at = _parse_time({"--start": text}, "--start")
    if not 0 <= at < _LAST_DATE_S:
        raise ValueError(f"--start ({text}) must be between the years 1970 and 2096")
    return at


def _parse_time(row: Mapping[str, Any], column: str) -> float:
    """Parse a number, or an ISO 8601 date with up to nine decimal places of the second. Raises `ValueError`."""
    value = row.get(column)
    try:
        at = float(value)  # type: ignore[arg-type]
    except ValueError:
        return _parse_date(str(value), column)
    except TypeError:
        raise ValueError(f"{column} is missing") from None
    if not math.isfinite(at):
        raise ValueError(f"{column} ({at}) is not finite")
    return at


def _parse_date(value: str, column: str) -> float:
    day, dot, rest = value.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    zone = rest[len(digits) :] or "+00:00"
    try:
        moment = datetime.fromisoformat(day if dot else value)
        if dot:
            moment = datetime.fromisoformat(day + zone.replace("Z", "+00:00"))
            return moment.timestamp() + float(f"0.{digits}")
    except ValueError:
        raise ValueError(f"{column} ({value!r:.40}) is no number and no date such as 2026-11-28T13:05:55Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class _LocustCount(NamedTuple):
    """Requests until a time; `total` is None for a row of a single endpoint."""

    at: float
    total: int | None


def _locust_count(row: Mapping[str, Any]) -> _LocustCount:
    total = int(number(row, "Total Request Count")) if row.get("Name") == "Aggregated" else None
    return _LocustCount(_parse_time(row, "Timestamp"), total)


def _locust_requests(counts: Iterable[_LocustCount]) -> Iterator[TraceRequest]:
    """Convert Locust's cumulative counts to requests."""
    previous: tuple[float, int] | None = None
    for at, count in counts:
        if count is None:
            continue
        if previous is not None:
            start, start_count = previous
            for position in range(count - start_count):
                at_s = start + (at - start) * (position + 0.5) / (count - start_count)
                yield TraceRequest(at_s, _UNKNOWN_WORK, "")
        previous = (at, count)


def by_model(
    requests: Iterable[TraceRequest],
    stretch: float = 1.0,
    bucket_s: float = 0.0,
    seed: int = 0,
    *,
    absolute: bool = False,
) -> dict[str, Traffic]:
    """Group by model and sort by time; unless `absolute`, times are relative to the first request."""
    rng = random.Random(seed)
    shifted = [
        request._replace(at=request.at * stretch + (rng.uniform(0, bucket_s) if bucket_s else 0.0))
        for request in requests
    ]
    shifted.sort()
    zero = 0.0 if absolute or not shifted else shifted[0].at
    found: dict[str, list[TimedRequest]] = {}
    for request in shifted:
        timed = TimedRequest(request.at - zero, request.work_s, request.urgency)
        found.setdefault(request.model, []).append(timed)
    return {name: traffic_of(requests) for name, requests in found.items()}


def read_numbers(file: Path) -> tuple[float, ...]:
    """Read a column of durations such as measured start times, in seconds. Raises `InvalidTrace`."""
    rows = list(csv.DictReader(io.StringIO(read_text(file))))
    column = next((name for name in ("load_s", "cold_start_s", "value") if rows and name in rows[0]), None)
    if column is None:
        raise InvalidTrace(f"{file} has no column load_s, cold_start_s or value (milliseconds)")
    unit = 1000.0 if column == "value" else 1.0
    try:
        return tuple(number(row, column) / unit for row in rows)
    except ValueError as error:
        raise InvalidTrace(f"{file} cannot be read: {error}") from None
