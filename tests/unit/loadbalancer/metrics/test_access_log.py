"""The access log: a line for each request, which no client can forge, and which never waits for its reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.simulator.trace_rows import parse_rows
from loadbalancer.context.request_context import RequestContext
from loadbalancer.context.trace_context import parse_traceparent
from loadbalancer.metrics import access_log
from loadbalancer.metrics.access_log import AccessLog, access_line, as_text
from scripts.harness.processes import PATIENCE_S

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
NOW = 1_700_000_000.25


def context(*, tasks: bool = True) -> RequestContext:
    made = RequestContext("r1", parse_traceparent(f"00-{TRACE}-00f067aa0ba902b7-01"))
    if tasks:
        made.on_submit("m", 2, 1.0)
        made.on_task_end(1.0, 1.5, 3.5)
        made.on_task_end(1.0, 2.0, 3.5)
    return made


def line(path: str = "/predict", status: int = 200, *, tasks: bool = True, method: str = "POST") -> bytes:
    made = access_line(context(tasks=tasks), method, path, status, 3.0, "team-a", 123, NOW)
    return msgspec.json.encode(made)


def test_fields_of_a_line() -> None:
    assert json.loads(line()) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "loadbalancer.access",
        "message": "POST /predict 200",
        "program": "loadbalancer",
        "request_id": "r1",
        "method": "POST",
        "path": "/predict",
        "status": 200,
        "duration_s": 3.0,
        "bytes": 123,
        "model": "m",
        "owner": "team-a",
        "waited_s": 1.0,
        "ran_s": 2.0,
        "trace_id": TRACE,
    }


def test_line_as_text() -> None:
    made = access_line(context(), "GET", '/a "b', 404, 0.25, "team-a", 9, NOW)
    assert as_text(made) == (
        '2023-11-14T22:13:20.250Z INFO    loadbalancer.access: GET "/a \\"b" 404 duration_s=0.250 waited_s=1.000 '
        f"ran_s=2.000 model=m owner=team-a bytes=9 request_id=r1 trace_id={TRACE}"
    )


@given(st.text())
def test_no_path_can_forge_a_line(path: str) -> None:
    encoded = line(f"/{path}").decode()
    text = as_text(msgspec.json.decode(encoded, type=access_log.AccessLine))
    for shown in (encoded, text):
        assert shown.isprintable()
        assert len(shown) < 3000
    assert set(json.loads(encoded)) == set(json.loads(line()))


@pytest.mark.parametrize("as_json", [True, False])
def test_lines_reach_standard_error(capsys: pytest.CaptureFixture[str], *, as_json: bool) -> None:
    log = AccessLog(as_json=as_json)
    log.start()
    for number in range(1000):
        log.put(context(), "POST", f"/{number}", 200, 1.0, "", 5)
    log.stop()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1000
    assert all(f"/{number}" in each for number, each in enumerate(lines))


def test_a_slow_reader_costs_lines_and_nothing_else() -> None:
    log = AccessLog(as_json=True)  # nothing is written before it starts
    for _ in range(access_log._MAX_WAITING + 7):
        log.put(context(tasks=False), "POST", "/x", 200, 1.0, "", 5)
    assert log.counters == {"access_lines_dropped": 7}


_ON_A_FULL_DISK = """
import os, sys, time
from loadbalancer.context.request_context import RequestContext
from loadbalancer.metrics.access_log import AccessLog

os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
log = AccessLog(as_json=False)
log.start()
log.put(RequestContext("r1"), "POST", "/lost", 200, 1.0, "", 5)
while not log.counters:
    time.sleep(0.01)
os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), 2)
log.put(RequestContext("r2"), "POST", "/later", 200, 1.0, "", 5)
log.stop()
print(log.counters["access_lines_dropped"])
"""


def test_lines_are_written_again_after_the_disk_was_full(tmp_path: Path) -> None:
    file = tmp_path / "log"
    command = [sys.executable, "-c", _ON_A_FULL_DISK, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout == "1\n"
    assert "/later" in file.read_text()


def test_simulator_reads_the_requests_that_asked_a_model() -> None:
    others = b'{"time": "x", "level": "info", "logger": "loadbalancer", "message": "serving"}'
    lines = [others, line(), line(status=429), line(tasks=False), line("/v1/models", tasks=False, method="GET"), line()]
    rows = list(parse_rows(b"\n".join(lines).decode()))
    assert [row.line for row in rows] == [2, 6]
    assert all(not isinstance(row.values, ValueError) and row.values["ran_s"] == 2.0 for row in rows)
