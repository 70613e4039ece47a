"""Recorded traffic from files: our own, and the published ones as they are, told apart by the names of their columns.

| file | time | what a request needs |
|---|---|---|
| our CSV | `arrival_s` | `exec_s`, else `steps` or `output_tokens`; `model` where there are several |
| the balancer's record of arrivals | `arrived` | `ran_s`, else `steps`; `model` |
| GenTD26 `lora_request_trace.csv` | `gmt_create` | `exec_time_seconds` |
| GenTD26 `pipeline_inference_data_anon.csv` | `timestamp_anon` | `value`, in milliseconds |
| Azure LLM 2023 and 2024 | `TIMESTAMP` | `GeneratedTokens` |
| ServeGen, Mooncake and the like, CSV or JSON lines | `timestamp` | `output_tokens` or `output_length` |
| Locust `_stats_history.csv` | `Timestamp` | nothing: the rows count requests, which are spread evenly between them |

Files may be compressed (`.gz`), or the only one of a `.tar.gz`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from controller.simulator.scenarios import Traffic

#: Columns that tell when a request came.
_TIMES = ("arrival_s", "arrived", "gmt_create", "timestamp_anon", "TIMESTAMP", "timestamp")
#: Columns that tell for how long it ran, and how many of their units make a second.
_RAN = {"exec_s": 1.0, "ran_s": 1.0, "exec_time_seconds": 1.0, "value": 1000.0}
_TOKENS = ("output_tokens", "GeneratedTokens", "output_length")
_STEPS = ("steps", "num_inference_steps")
#: What a file has where it has no value.
_NOTHING = ("", "NULL", "None", "NaN", "nan", None)


class TraceRefused(ValueError):
    """The file cannot be read as a trace; the text says what to change."""


class Costs(NamedTuple):
    """What a request needs whose running time the file does not tell, in seconds on an otherwise idle worker."""

    step_s: float = 0.15
    token_s: float = 0.04
    #: Where nothing at all is told.
    request_s: float = 4.5


class Request(NamedTuple):
    """One line of a trace."""

    at: float
    work_s: float
    model: str


def read_trace(
    file: Path, costs: Costs | None = None, *, stretch: float = 1.0, bucket_s: float = 0.0, seed: int = 0
) -> dict[str, Traffic]:
    """The requests by model, from the first one's time on. Raises `TraceRefused`.

    `stretch` multiplies all times, for a file whose clock was scaled; where times are full `bucket_s`, each request
    comes at any moment within its own.
    """
    try:
        text = _text(file)
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise TraceRefused(f"{file} cannot be read: {error}") from None
    rows = _rows(text, file)
    first = next(rows, None)
    if first is None:
        raise TraceRefused(f"{file} has no requests")
    rows = _chain(first, rows)
    try:
        if "Total Request Count" in first:
            requests = list(_counted(rows, costs or Costs()))
        else:
            requests = list(_single(rows, _named(first, _TIMES, file), costs or Costs()))
    except (ValueError, KeyError, TypeError) as error:
        raise TraceRefused(f"{file}: a line cannot be understood: {error}") from None
    return by_model(requests, stretch, bucket_s, seed, absolute="arrival_s" in first)


def _text(file: Path) -> str:
    if file.name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(file) as archive:
            member = next((one for one in archive if one.isfile() and one.name.endswith((".csv", ".jsonl"))), None)
            content = archive.extractfile(member) if member else None
            if content is None:
                raise TraceRefused(f"{file} holds no .csv or .jsonl file")
            return content.read().decode()
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).decode()


def _rows(text: str, file: Path) -> Iterator[Mapping[str, Any]]:
    if not text.lstrip().startswith("{"):
        return iter(csv.DictReader(io.StringIO(text)))
    try:
        return iter([json.loads(line) for line in text.splitlines() if line.strip()])
    except json.JSONDecodeError as error:
        raise TraceRefused(f"{file}: a line is not JSON: {error}") from None


def _chain(first: Mapping[str, Any], rest: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    yield first
    yield from rest


def _named(row: Mapping[str, Any], names: Iterable[str], file: Path) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        raise TraceRefused(f"{file} has none of the columns {', '.join(names)}; there are: {', '.join(map(str, row))}")
    return found


def _single(rows: Iterable[Mapping[str, Any]], time: str, costs: Costs) -> Iterator[Request]:
    for row in rows:
        model = row.get("model") or row.get("checkpoint_model_version_id") or ""
        yield Request(_seconds(row[time]), _work_s(row, costs), str(model))


def _seconds(value: Any) -> float:
    """A number, or a date as ISO 8601 has it, with up to nine digits after the second."""
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


def _work_s(row: Mapping[str, Any], costs: Costs) -> float:
    for column, units in _RAN.items():
        if row.get(column) not in _NOTHING:
            return max(float(row[column]) / units, 0.0)
    for column in _TOKENS:
        if row.get(column) not in _NOTHING:
            return float(row[column]) * costs.token_s
    for column in _STEPS:
        if row.get(column) not in _NOTHING:
            images = row.get("num_images_per_prompt")
            return float(row[column]) * costs.step_s * (1.0 if images in _NOTHING else float(images))
    return costs.request_s


def _counted(rows: Iterable[Mapping[str, Any]], costs: Costs) -> Iterator[Request]:
    """Locust counts all requests since its start, every second or so, in the rows named Aggregated."""
    before: tuple[float, int] | None = None
    for row in rows:
        if row["Name"] != "Aggregated":
            continue
        at, count = _seconds(row["Timestamp"]), int(row["Total Request Count"])
        if before is not None:
            since, known = before
            for number in range(count - known):
                yield Request(since + (at - since) * (number + 0.5) / (count - known), costs.request_s, "")
        before = (at, count)


def by_model(
    requests: Iterable[Request], stretch: float = 1.0, bucket_s: float = 0.0, seed: int = 0, *, absolute: bool = False
) -> dict[str, Traffic]:
    """Sorted by time, from 0 on unless the times are `absolute` already."""
    chance = random.Random(seed)
    moved = [
        request._replace(at=request.at * stretch + (chance.uniform(0, bucket_s) if bucket_s else 0.0))
        for request in requests
    ]
    moved.sort()
    zero = 0.0 if absolute or not moved else moved[0].at
    found: dict[str, tuple[list[float], list[float]]] = {}
    for request in moved:
        times, work = found.setdefault(request.model, ([], []))
        times.append(request.at - zero)
        work.append(request.work_s)
    return {name: Traffic(*columns) for name, columns in found.items()}


def read_numbers(file: Path) -> tuple[float, ...]:
    """A column of numbers, such as measured times of starts in seconds. Raises `TraceRefused`."""
    try:
        rows = list(csv.DictReader(io.StringIO(_text(file))))
        column = next(name for name in ("load_s", "cold_start_s", "value") if rows and name in rows[0])
        numbers = tuple(float(row[column]) / (1000.0 if column == "value" else 1.0) for row in rows)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise TraceRefused(f"{file} cannot be read: {error}") from None
    except StopIteration:
        raise TraceRefused(f"{file} has no column load_s, cold_start_s or value (milliseconds)") from None
    return numbers
