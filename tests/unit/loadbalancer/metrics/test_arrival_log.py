"""The record of arrivals: what a line says, and what becomes of the file."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from controller.simulator.request_work import RequestCosts
from controller.simulator.traces import read_trace
from loadbalancer.metrics.arrival_log import COLUMNS, ArrivalLog, line
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TaskState
from tests.support.log_records import records_of
from tests.support.scheduler import task

#: Least that one file may take before it is put aside.
SMALL = 4096


def ended(name: str, state: TaskState = TaskState.DONE, began: float | None = 12.0) -> Task:
    made = task(name, 10.0)
    made.state, made.first_started, made.work_s, made.siblings = state, began, 2.5, 3
    return made


def model_results(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (ended("a"), "1010.000,m,20,64x64,3,2.000,8.000,2.500,done"),
        (ended("a", TaskState.FAILED), "1010.000,m,20,64x64,3,2.000,8.000,2.500,failed"),
        (ended("a", TaskState.EXPIRED, began=None), "1010.000,m,20,64x64,3,10.000,,,expired"),
    ],
)
def test_what_a_line_says(of: Task, expected: str) -> None:
    assert line(of, now=20.0, wall_time=1020.0) == expected
    assert len(expected.split(",")) == len(COLUMNS.split(","))


def test_the_file_goes_on_after_a_restart_and_holds_nothing_private(tmp_path: Path) -> None:
    path = tmp_path / "arrivals.csv"
    for name in ("a", "b"):
        arrivals = ArrivalLog(path, 10 * SMALL)
        arrivals.start()
        arrivals.put(ended(name), 20.0, 1020.0)
        arrivals.stop()
    assert [row["outcome"] for row in model_results(path)] == ["done", "done"]
    assert "seven" not in path.read_text(), "the prompt"
    assert "anonymous" not in path.read_text(), "the owner"


def test_the_simulator_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "arrivals.csv"
    arrivals = ArrivalLog(path, 10 * SMALL)
    arrivals.start()
    arrivals.put(ended("late"), 30.0, 1030.0)
    arrivals.put(ended("early", began=None), 24.5, 1020.0)
    arrivals.stop()
    traffic = read_trace(path, RequestCosts(step_s=0.5))["m"]
    assert list(traffic.times) == pytest.approx([0.0, 4.5]), "by their arrival, not by their end"
    assert list(traffic.work) == [10.0, 2.5], "what was not measured goes by its steps"


def test_it_never_takes_more_than_it_may(tmp_path: Path) -> None:
    path = tmp_path / "arrivals.csv"
    arrivals = ArrivalLog(path, 2 * SMALL)
    arrivals.start()
    for _ in range(1000):
        arrivals.put(ended("a"), 20.0, 1020.0)
    arrivals.stop()
    files = sorted(tmp_path.iterdir())
    assert files == [path, path.with_name("arrivals.csv.1")]
    assert sum(file.stat().st_size for file in files) <= 2 * SMALL
    for file in files:
        assert file.read_text().startswith(COLUMNS)
        assert len(model_results(file)) > 10
    assert arrivals.dropped == 0


def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arrivals = ArrivalLog(tmp_path / "nowhere" / "arrivals.csv", SMALL)
    arrivals.start()
    for _ in range(5):
        arrivals.put(ended("a"), 20.0, 1020.0)
    arrivals.stop()
    errors = [each for each in records_of(caplog, "loadbalancer.metrics.arrival_log") if each.levelname == "ERROR"]
    assert [each.getMessage() for each in errors] == ["arrivals cannot be recorded"]


def test_a_pipe_that_nobody_reads_holds_nobody_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe")
    arrivals = ArrivalLog(tmp_path / "pipe", SMALL)
    arrivals.start()
    arrivals.put(ended("a"), 20.0, 1020.0)
    arrivals.stop()
    assert "arrivals cannot be recorded" in caplog.text


def test_a_disk_that_is_too_slow_holds_nobody_up(tmp_path: Path) -> None:
    arrivals = ArrivalLog(tmp_path / "arrivals.csv", SMALL)
    for _ in range(10_003):  # nobody writes
        arrivals.put(ended("a"), 20.0, 1020.0)
    assert arrivals.dropped == 3
