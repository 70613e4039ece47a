"""Readers of recorded traffic. The columns of a file identify its format.

| file | arrival time | work of a request |
|---|---|---|
| Muster CSV | `arrival_s` | `exec_s`, else `steps` or `output_tokens`; optional `model` |
| arrival log of the load balancer | `arrived` | `ran_s`, else `steps`; `model` |
| GenTD26 `lora_request_trace.csv` | `gmt_create` | `exec_time_seconds` |
| GenTD26 `pipeline_inference_data_anon.csv` | `timestamp_anon` | `value`, in milliseconds |
| Azure LLM 2023 and 2024 | `TIMESTAMP` | `GeneratedTokens` |
| ServeGen, Mooncake and the like, CSV or JSON lines | `timestamp` | `output_tokens` or `output_length` |
| Locust `_stats_history.csv` | `Timestamp` | none; rows count requests, which are spread evenly between two rows |

Files may be compressed (`.gz`) or the first data file of a `.tar.gz`.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import random
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from controller.simulator.scenarios import Traffic

#: Columns with the arrival time.
_TIME_COLUMNS = ("arrival_s", "arrived", "gmt_create", "timestamp_anon", "TIMESTAMP", "timestamp")
#: Columns with the execution time, and their units per second.
_DURATION_COLUMNS = {"exec_s": 1.0, "ran_s": 1.0, "exec_time_seconds": 1.0, "value": 1000.0}
_TOKEN_COLUMNS = ("output_tokens", "GeneratedTokens", "output_length")
_STEP_COLUMNS = ("steps", "num_inference_steps")
#: Representations of a missing value.
_MISSING_VALUES = ("", "NULL", "None", "NaN", "nan", None)


class InvalidTrace(ValueError):
    """The file cannot be read as a trace; the text says what to change."""


class RequestCosts(NamedTuple):
    """Work of requests without an execution time in the trace, in seconds on an otherwise idle worker."""

    step_s: float = 0.15
    token_s: float = 0.04
    #: For requests without any size.
    request_s: float = 4.5


class TraceRequest(NamedTuple):
    """One request of a trace."""

    at: float
    work_s: float
    model: str


def read_trace(
    file: Path, costs: RequestCosts | None = None, *, stretch: float = 1.0, bucket_s: float = 0.0, seed: int = 0
) -> dict[str, Traffic]:
    """Return the requests by model, with times relative to the first request. Raises `InvalidTrace`.

    `stretch` multiplies all times. With times rounded to `bucket_s`, each request gets a random time in its bucket.
    """
    try:
        text = _read_text(file)
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise InvalidTrace(f"{file} cannot be read: {error}") from None
    rows = _parse_rows(text, file)
    first = next(rows, None)
    if first is None:
        raise InvalidTrace(f"{file} has no requests")
    rows = itertools.chain([first], rows)
    try:
        if "Total Request Count" in first:
            requests = list(_locust_requests(rows, costs or RequestCosts()))
        else:
            requests = list(_requests(rows, _find_column(first, _TIME_COLUMNS, file), costs or RequestCosts()))
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidTrace(f"{file}: cannot parse a line: {error}") from None
    return by_model(requests, stretch, bucket_s, seed, absolute="arrival_s" in first)


def _read_text(file: Path) -> str:
    if file.name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(file) as archive:
            member = next((one for one in archive if one.isfile() and one.name.endswith((".csv", ".jsonl"))), None)
            content = archive.extractfile(member) if member else None
            if content is None:
                raise InvalidTrace(f"{file} contains no .csv or .jsonl file")
            return content.read().decode()
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).decode()


def _parse_rows(text: str, file: Path) -> Iterator[Mapping[str, Any]]:
    if not text.lstrip().startswith("{"):
        return iter(csv.DictReader(io.StringIO(text)))
    try:
        return iter([json.loads(line) for line in text.splitlines() if line.strip()])
    except json.JSONDecodeError as error:
        raise InvalidTrace(f"{file}: a line is not JSON: {error}") from None


def _find_column(row: Mapping[str, Any], names: Iterable[str], file: Path) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        raise InvalidTrace(
            f"{file} has none of the columns {', '.join(names)}; its columns are {', '.join(map(str, row))}"
        )
    return found


def _requests(rows: Iterable[Mapping[str, Any]], time: str, costs: RequestCosts) -> Iterator[TraceRequest]:
    for row in rows:
        model = row.get("model") or row.get("checkpoint_model_version_id") or ""
        yield TraceRequest(_parse_time(row[time]), _work_s(row, costs), str(model))


def _parse_time(value: Any) -> float:
    """Parse a number, or an ISO 8601 date with up to nine decimal places of the second."""
    try:
        return float(value)
    except ValueError:
        day, dot, rest = str(value).partition(".")
        digits = rest.split("+")[0].split("Z")[0]
        zone = rest[len(digits) :] or "+00:00"
        moment = datetime.fromisoformat(day if dot else str(value))
        if dot:
            moment = datetime.fromisoformat(day + zone.replace("Z", "+00:00"))
            return moment.timestamp() + float(f"0.{digits}")
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _work_s(row: Mapping[str, Any], costs: RequestCosts) -> float:
    for column, units in _DURATION_COLUMNS.items():
        if row.get(column) not in _MISSING_VALUES:
            return max(float(row[column]) / units, 0.0)
    for column in _TOKEN_COLUMNS:
        if row.get(column) not in _MISSING_VALUES:
            return float(row[column]) * costs.token_s
    for column in _STEP_COLUMNS:
        if row.get(column) not in _MISSING_VALUES:
            images = row.get("num_images_per_prompt")
            return float(row[column]) * costs.step_s * (1.0 if images in _MISSING_VALUES else float(images))
    return costs.request_s


def _locust_requests(rows: Iterable[Mapping[str, Any]], costs: RequestCosts) -> Iterator[TraceRequest]:
    """Convert Locust's cumulative counts, in the rows named Aggregated, to requests."""
    previous: tuple[float, int] | None = None
    for row in rows:
        if row["Name"] != "Aggregated":
            continue
        at, count = _parse_time(row["Timestamp"]), int(row["Total Request Count"])
        if previous is not None:
            start, start_count = previous
            for number in range(count - start_count):
                at_s = start + (at - start) * (number + 0.5) / (count - start_count)
                yield TraceRequest(at_s, costs.request_s, "")
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
    found: dict[str, tuple[list[float], list[float]]] = {}
    for request in shifted:
        times, work = found.setdefault(request.model, ([], []))
        times.append(request.at - zero)
        work.append(request.work_s)
    return {name: Traffic(*columns) for name, columns in found.items()}


def read_numbers(file: Path) -> tuple[float, ...]:
    """Read a column of durations such as measured start times, in seconds. Raises `InvalidTrace`."""
    try:
        rows = list(csv.DictReader(io.StringIO(_read_text(file))))
        column = next(name for name in ("load_s", "cold_start_s", "value") if rows and name in rows[0])
        numbers = tuple(float(row[column]) / (1000.0 if column == "value" else 1.0) for row in rows)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise InvalidTrace(f"{file} cannot be read: {error}") from None
    except StopIteration:
        raise InvalidTrace(f"{file} has no column load_s, cold_start_s or value (milliseconds)") from None
    return numbers
