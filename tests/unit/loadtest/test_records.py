"""Histograms, the records of seconds, and the figures of the report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.loadtest_lib.histogram import DurationHistogram
from scripts.loadtest_lib.html_report import duration, render_report
from scripts.loadtest_lib.records import OWN_SHARE, LoadSecond, RecordReader, RecordWriter
from scripts.loadtest_lib.report_data import report_data
from scripts.loadtest_lib.sampler import ServerSample

DURATIONS = st.lists(st.floats(1e-4, 1000), min_size=1, max_size=60)
OPTIONS = {"shape": "steady", "open_loop": False}
FRAME = {
    "description": "Steady.",
    "command": "scripts/loadtest.py",
    "machine": {"cpu_cores": 2, "processor": "x", "python": "3"},
    "options": OPTIONS,
    "latency_note": "",
    "sampling_problem": "",
}


def histogram(*seconds: float) -> DurationHistogram:
    result = DurationHistogram()
    for each in seconds:
        result.add(each)
    return result


def second(users: int = 1, ok: int = 0, error: int = 0, latency_s: float = 1.0) -> LoadSecond:
    result = LoadSecond(users, in_flight=users)
    result.outcomes.update({("image", "ok"): ok, ("image", "error"): error})
    for _ in range(ok):
        result.durations["image"].add(latency_s)
        result.durations[OWN_SHARE].add(latency_s / 100)
    result.errors.update({"image: 500": error} if error else {})
    return result


@given(DURATIONS, st.floats(0.01, 1))
def test_quantile_is_exact_to_a_bucket(values: list[float], share: float) -> None:
    exact = sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
    assert histogram(*values).quantile(share) == pytest.approx(exact, rel=0.011)


@given(DURATIONS, DURATIONS)
def test_merged_histograms_are_of_all_values(first: list[float], second: list[float]) -> None:
    merged = histogram(*first)
    merged.merge(histogram(*second))
    assert merged.buckets == histogram(*first, *second).buckets
    assert merged.mean() == pytest.approx(sum(first + second) / len(first + second), rel=0.011)


def test_empty_histogram_has_no_figures() -> None:
    assert histogram().quantile(0.5) is None
    assert histogram().mean() is None


def test_reader_sums_all_processes(tmp_path: Path) -> None:
    for name in ("1", "2"):
        writer = RecordWriter(tmp_path / f"records-{name}.jsonl")
        writer.users = 3
        writer.add("image", "ok", 0.5)
        writer.add("image", "refused", 0.1)
        writer.add("image", "error", 0.1, "image: 500")
        writer.flush(100)
        writer.close()
    reader = RecordReader(tmp_path)
    reader.poll()
    reader.poll()
    found = reader.seconds[100]
    assert (found.users, found.count("ok"), found.count("refused"), found.count("error")) == (6, 2, 2, 2)
    assert found.durations["image"].count == 2
    assert found.errors == {"image: 500": 2}


def test_reader_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    file, reader = tmp_path / "records-1.jsonl", RecordReader(tmp_path)
    writer = RecordWriter(file)
    writer.add("image", "ok", 0.5)
    writer.flush(100)
    writer.close()
    line = file.read_text()
    file.write_text(line[:20])
    reader.poll()
    assert not reader.seconds
    file.write_text(line)
    reader.poll()
    assert reader.seconds[100].count("ok") == 1


def test_test_that_starts_again_replaces_the_first(tmp_path: Path) -> None:
    reader = RecordReader(tmp_path)
    for start, count in ((100, 2), (200, 1)):
        writer = RecordWriter(tmp_path / "records-1.jsonl")
        for number in range(count):
            writer.flush(start + number)
        writer.close()
        reader.poll()
    assert list(reader.seconds) == [200]


def test_kinds_of_errors_are_bounded(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "records-1.jsonl")
    for number in range(1000):
        writer.add("image", "error", 0.1, f"error {number}")
    writer.flush(1)
    writer.close()
    reader = RecordReader(tmp_path)
    reader.poll()
    assert len(reader.seconds[1].errors) == 20
    assert reader.seconds[1].count("error") == 1000


def test_ramp_counts_in_totals_and_not_in_latency() -> None:
    seconds = {100: second(1, ok=2, error=1, latency_s=50), 110: second(4, ok=3, latency_s=1)}
    data = report_data(seconds, [], [], measured_from_s=5)
    assert (data["totals"]["ok"], data["totals"]["errors"], data["totals"]["max_users"]) == (5, 1, 4)
    [image, everything] = data["kinds"]
    assert (image["name"], everything["name"]) == ("image", "all requests")
    assert image["p99_ms"] == pytest.approx(1000, rel=0.011)
    assert data["errors"] == [{"text": "image: 500", "count": 1}]
    assert data["totals"]["own_share_p99_ms"] == pytest.approx(10, rel=0.011)


def test_series_has_an_interval_for_each_second_and_few_points() -> None:
    seconds = {1000 + number: second(number, ok=1) for number in range(1000)}
    samples = [ServerSample(1000.5 + number, 2, number, 3, 70 << 20) for number in range(1000)]
    series = report_data(seconds, samples, [])["series"]
    assert {len(column) for column in series.values()} == {200}
    assert sum(series["ok_per_s"]) * 5 == pytest.approx(1000)
    assert series["queued"][-1] == 999


@pytest.mark.parametrize(("growth", "is_flat"), [(0, True), (200, True), (1000, False)])
def test_memory_that_grows_is_not_flat(growth: int, is_flat: bool) -> None:
    seconds = {number: second(1, ok=100) for number in range(100)}
    samples = [ServerSample(number + 0.5, 1, 0, 0, (70 << 20) + number * 100 * growth) for number in range(100)]
    assert report_data(seconds, samples, [])["memory"]["is_flat"] is is_flat


def test_decisions_count_from_the_start() -> None:
    decision: dict[str, Any] = {"time": 103.0, "model": "sd", "provisioned": 1, "desired": 2, "reason": "<b>queue"}
    earlier = decision | {"time": 50.0}
    data = report_data({100: second(1, ok=1), 110: second(1, ok=1)}, [], [earlier, decision])
    assert [each["at_s"] for each in data["decisions"]] == [3.0]
    page = render_report(FRAME | data)
    assert "&lt;b&gt;queue" in page
    assert "<b>queue" not in page


def test_page_loads_nothing() -> None:
    page = render_report(FRAME | report_data({1: second(2, ok=5), 2: second(2, ok=5)}, [], []))
    assert page.count("<svg") == 4
    assert "src=" not in page
    assert "@import" not in page


def test_report_of_nothing_is_a_report() -> None:
    data = report_data({}, [], [])
    assert data["totals"] == {"ok": 0, "refused": 0, "errors": 0}


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(None, "-"), (4.25, "4.2 ms"), (999.0, "999.0 ms"), (12345, "12.35 s")]
)
def test_duration(milliseconds: float | None, text: str) -> None:
    assert duration(milliseconds) == text
