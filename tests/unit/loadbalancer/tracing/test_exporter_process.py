"""The way of records to the exporter: never waiting, bounded, and back after a crash."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from pathlib import Path

import pytest

from loadbalancer.tracing import exporter_process
from loadbalancer.tracing.exporter import RateFilter, records
from loadbalancer.tracing.exporter_process import ExporterProcess
from loadbalancer.tracing.records import SpanRecord
from scripts.harness.processes import PATIENCE_S

RECORD = SpanRecord("a" * 32, "b" * 16, "", 0.0, "job", "internal", 1.0, 2.0, {"text": "x" * 1000})
SLEEPS = "import time; time.sleep(600)"
COPIES = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, open(sys.argv[1], 'ab'))"
DIES = "import sys; sys.exit(7)"


def exporter(code: str, *arguments: str) -> ExporterProcess:
    return ExporterProcess({"PATH": "/usr/bin:/bin"}, as_json=False, command=(sys.executable, "-c", code, *arguments))


async def until_started(made: ExporterProcess) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while made.pid is None:
            await asyncio.sleep(0.01)


async def test_records_arrive_complete_and_in_order(tmp_path: Path) -> None:
    made = exporter(COPIES, str(tmp_path / "out"))
    made.put(RECORD)  # before it has started
    made.start()
    await until_started(made)
    for _ in range(99):
        made.put(RECORD)
    await made.stop()
    with (tmp_path / "out").open("rb") as file:
        assert list(records(file)) == [RECORD] * 100
    assert not made.counters


async def test_exporter_that_does_not_read_costs_no_time_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while its collector cannot be reached."""
    monkeypatch.setattr(exporter_process, "_MAX_BYTES", 100_000)
    monkeypatch.setattr(exporter_process, "_FLUSH_S", 0.001)
    monkeypatch.setattr(exporter_process, "_END_S", 0.05)
    made = exporter(SLEEPS)
    made.start()
    await until_started(made)
    async with asyncio.timeout(PATIENCE_S):
        while made.counters["trace_records_dropped"] < 10_000:
            for _ in range(100):
                made.put(RECORD)
            await asyncio.sleep(0.002)
    assert made.waiting_bytes < 100_000 + exporter_process._MAX_RECORDS * 2000
    await made.stop()
    assert made.pid is None


async def test_records_are_dropped_while_there_is_no_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_process, "_MAX_RECORDS", 10)
    made = exporter(SLEEPS)
    for _ in range(100):
        made.put(RECORD)
    assert made.counters["trace_records_dropped"] == 90
    await made.stop()


async def test_an_exporter_that_ends_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    made = exporter(DIES)
    made.start()
    async with asyncio.timeout(PATIENCE_S):
        while caplog.text.count("the exporter of traces has ended with status 7") < 2:
            await asyncio.sleep(0.01)
    await made.stop()


def test_what_is_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x00\x00\x00\x09abc")
    with (tmp_path / "x").open("rb") as file:
        assert list(records(file)) == []


def test_lines_about_the_collector_are_few() -> None:
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, "x", (), None)
    assert [RateFilter(60.0).filter(record) for _ in range(2)] == [True, True]
    one = RateFilter(60.0)
    assert [one.filter(record) for _ in range(3)] == [True, False, False]
    quick = RateFilter(0.0)
    time.sleep(0.001)
    assert quick.filter(record)
    assert quick.filter(record)
