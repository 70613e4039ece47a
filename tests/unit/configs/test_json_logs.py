"""Log lines in JSON: an object per line, whatever a client or a library writes into them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.logs import CANNOT_START, JsonFormatter, start_failure, utc_time
from scripts.harness.processes import ROOT

FORMATTER = JsonFormatter({"program": "worker", "worker": "w1"}, lambda: {"request_id": "r1"})


def formatted(message: object, *args: object, error: BaseException | None = None, **extra: str) -> str:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("engine", logging.WARNING, __file__, 1, message, args, info)
    record.__dict__.update(extra)
    return FORMATTER.format(record)


def test_fields_of_a_line() -> None:
    line = json.loads(formatted("got %d of %s", 3, "x", task="t", trace_id="ab"))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "engine",
        "message": "got 3 of x",
        "program": "worker",
        "worker": "w1",
        "request_id": "r1",
        "task": "t",
        "trace_id": "ab",
    }


@given(st.text(), st.text(max_size=40))
def test_no_text_can_forge_a_line_or_a_field(text: str, request_id: str) -> None:
    line = formatted("%s", text, error=ValueError(text), request_id=request_id)
    assert line.isascii()
    assert line.isprintable()
    fields = json.loads(line)
    assert fields["message"] == text
    assert fields["request_id"] == (request_id or "r1")
    assert set(fields) == {"time", "level", "logger", "message", "program", "worker", "request_id", "exception"}


def test_traceback_stays_in_its_line() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError as error:
        line = formatted("failed", error=error)
    assert "\n" not in line
    exception = json.loads(line)["exception"]
    assert exception.startswith("Traceback")
    assert exception.endswith("ValueError: a\nb")


@pytest.mark.parametrize(("message", "args"), [("%d", ("x",)), ("%s %s", ("x",)), ({"a": object()}, ())])
def test_bad_log_calls_are_still_lines(message: object, args: tuple[object, ...]) -> None:
    assert json.loads(formatted(message, *args))["message"]


def test_long_texts_are_cut_in_the_middle() -> None:
    message = json.loads(formatted("a" * 200_000 + "end"))["message"]
    assert len(message) < 70_000
    assert message.endswith("aend")


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (formatted("%s%s", CANNOT_START, 'no file "x"\n2'), 'no file "x"\n2'),
        (f"2026-11-28 10:00:00,000 ERROR   worker: {CANNOT_START}no file", "no file"),
        ('{"message": "cannot start: cut o', "cut o"),
        ('{"message": "fine", "task": "cannot start: x"}', ""),
        ('["cannot start: x"]', 'x"]'),
        ("", ""),
    ],
)
def test_reason_of_a_failed_start_is_found(tail: str, reason: str) -> None:
    assert start_failure(f"noise\n{tail}\n") == reason


FAILS = """
import logging, threading, warnings
from configs.logs import configure_logging
configure_logging("info", as_json=True, program="worker")
warnings.warn("mind this")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("two\\nlines")
"""


def test_what_nobody_has_caught_is_a_line_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FAILS)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["warning", "error", "critical"]
    assert "mind this" in lines[0]["message"]
    assert lines[1]["exception"].endswith("ZeroDivisionError: division by zero")
    assert lines[2]["exception"].endswith("RuntimeError: two\nlines")


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.9999, "2023-11-14T22:13:20.999Z"),
        (1_700_000_000.25, "2023-11-14T22:13:20.250Z"),
    ],
)
def test_times_are_utc(at: float, expected: str) -> None:
    assert utc_time(at) == expected
