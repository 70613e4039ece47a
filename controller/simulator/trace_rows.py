"""Rows of a trace file with their line numbers: CSV, JSON lines, or an access log of nginx."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from controller.simulator import access_logs

#: Errors of a file that are reported in full.
_MAX_SHOWN = 5
#: Reading ends when this many more lines than allowed are bad.
_MAX_EXCESS = 1000
_GZIP_START = b"\x1f\x8b"
T = TypeVar("T")


class InvalidTrace(ValueError):
    """The file cannot be read as a trace; the text says what to change."""


class TraceRow(NamedTuple):
    """A row of a file: its values by column, or why it has none."""

    line: int
    values: Mapping[str, Any] | ValueError


def read_text(file: Path) -> str:
    """Return the text of a file, or of the first data file of an archive. Raises `InvalidTrace`."""
    try:
        if not file.name.endswith((".tar.gz", ".tgz")):
            data = file.read_bytes()
            return _decoded(file, gzip.decompress(data) if data.startswith(_GZIP_START) else data)
        with tarfile.open(file) as archive:
            member = next((one for one in archive if one.isfile() and one.name.endswith((".csv", ".jsonl"))), None)
            content = archive.extractfile(member) if member else None
            if content is None:
                raise InvalidTrace(f"{file} contains no .csv or .jsonl file")
            return _decoded(file, content.read())
    except tarfile.ReadError:
        raise InvalidTrace(f"{file} cannot be read: it is no complete tar archive") from None
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InvalidTrace(f"{file} cannot be read: {reason}") from None


def _decoded(file: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidTrace(f"{file}, line {line}: byte 0x{data[error.start]:02x} is no UTF-8 text") from None


def parse_rows(text: str) -> Iterator[TraceRow]:
    """Yield the rows of a text. Rows of an access log that asked no model are left out."""
    if _is_json(text):
        return _json_rows(text)
    return _access_log_rows(text) if access_logs.is_access_log(text) else _csv_rows(text)


def is_csv(text: str) -> bool:
    """Return whether the text is read as CSV: it is neither JSON lines nor an access log."""
    return not _is_json(text) and not access_logs.is_access_log(text)


def _is_json(text: str) -> bool:
    return text.lstrip("\ufeff \t\r\n").startswith("{")


def _json_rows(text: str) -> Iterator[TraceRow]:
    for number, line in enumerate(text.lstrip("\ufeff").split("\n"), 1):
        if line.strip():
            values = _json_values(line)
            if isinstance(values, ValueError) or access_logs.asks_a_model(values):
                yield TraceRow(number, values)


def _json_values(line: str) -> Mapping[str, Any] | ValueError:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"this is not JSON: {error}")
    return values if isinstance(values, dict) else ValueError("this is not a JSON object")


def _access_log_rows(text: str) -> Iterator[TraceRow]:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            values = access_logs.parse_line(line) if line.strip() else None
        except ValueError as error:
            yield TraceRow(number, error)
            continue
        if values is not None:
            yield TraceRow(number, values)


def _csv_rows(text: str) -> Iterator[TraceRow]:
    reader = csv.DictReader(io.StringIO(text.lstrip("\ufeff")))
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    except csv.Error as error:
        yield TraceRow(reader.line_num, ValueError(str(error)))
        return
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield TraceRow(reader.line_num, ValueError(str(error)))
            continue
        yield TraceRow(reader.line_num, _checked(row))


def _checked(row: Mapping[str | None, Any]) -> Mapping[str, Any] | ValueError:
    """Return the row, or an error if its values are not one per column."""
    if None in row:
        return ValueError("more values than columns")
    if None in row.values():
        return ValueError("fewer values than columns")
    return cast("Mapping[str, Any]", row)


def convert_rows(
    file: Path, rows: Iterable[TraceRow], convert: Callable[[Mapping[str, Any]], T], max_bad_lines: int
) -> tuple[list[T], list[str]]:
    """Return the converted rows, and a description of the bad ones that were left out.

    Raises `InvalidTrace` with the first errors if more than `max_bad_lines` are bad.
    """
    good: list[T] = []
    errors: list[str] = []
    bad = 0
    for row in rows:
        try:
            if isinstance(row.values, ValueError):
                raise row.values
            good.append(convert(row.values))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            bad += 1
            if len(errors) < _MAX_SHOWN:
                errors.append(f"{file}, line {row.line}: {error}")
            if bad > max_bad_lines + _MAX_EXCESS:
                break
    errors += [f"and {bad - len(errors)} more bad lines"] * (bad > len(errors))
    if bad > max_bad_lines:
        count = "; 1 bad line" if bad == 1 else f"\n{bad} bad lines"
        raise InvalidTrace(
            "\n".join(errors) + f"{count}, and {max_bad_lines} are allowed (--bad-lines); {len(good)} are good"
        )
    return good, errors
