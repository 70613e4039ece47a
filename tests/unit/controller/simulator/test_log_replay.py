"""Replays of a server's arrival logs with other settings."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from controller.simulator.log_replay import InvalidReplay, replay
from controller.simulator.recorded_requests import measured_waits, read_logs, traffic_from
from loadbalancer.metrics.arrival_log import COLUMNS
from wire.simulation import RunSettings, SimulatedRun, SimulatedTraffic, SimulationProgress, SimulationReply
from wire.simulation import SimulationRequest as Request

START = 1_000_000.0


@pytest.fixture
def config(tmp_path: Path) -> str:
    models = {name: {"engine": "sim", "scaling": {"max_workers": 4}} for name in ("m", "other")}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"models": models}))
    return str(file)


def log(folder: Path, *lines: str, name: str = "arrivals.csv") -> str:
    file = folder / name
    file.write_text("\n".join([COLUMNS, *lines, ""]))
    return str(file)


def line(at: float, waited: str = "0.5", work: str = "2.0", outcome: str = "done", model: str = "m") -> str:
    return f"{START + at:.3f},{model},20,512x512,1,{waited},{work},{work},{outcome}"


def request(config: str, logs: list[str], *fields: dict[str, Any], **options: Any) -> Request:
    runs = [RunSettings("current"), *(RunSettings("ABCD"[at], one) for at, one in enumerate(fields))]
    return Request(config, "m", runs, START - 100, START + 3600, logs, max_workers=4, **options)


def test_settings_are_compared_with_the_record(config: str, tmp_path: Path) -> None:
    logs = [log(tmp_path, *(line(at) for at in range(0, 600, 5)))]
    replies: list[SimulationReply] = []
    replay(request(config, logs, {"min_workers": 3}), replies.append)
    traffic, *others = replies
    assert isinstance(traffic, SimulatedTraffic)
    assert traffic.measured is not None
    assert (traffic.requests, traffic.mean_work_s, sum(traffic.arrivals)) == (120, 2.0, 120)
    assert (traffic.measured.in_time, traffic.measured.wait_p99_s) == (1.0, 0.5)
    current, more = (reply for reply in others if isinstance(reply, SimulatedRun))
    assert (current.name, current.min_workers, more.name, more.min_workers) == ("current", 1, "A", 3)
    assert more.worker_hours > 2.9 > current.worker_hours
    assert len(current.workers) == len(traffic.arrivals)
    assert any(isinstance(reply, SimulationProgress) for reply in others)


def test_schedule_follows_the_dates_of_the_log(config: str, tmp_path: Path) -> None:
    # It begins at 13:46 UTC.
    schedule = [{"cron": "0 13 * * *", "workers": 3}, {"cron": "0 20 * * *", "workers": 1}]
    replies: list[SimulationReply] = []
    logs = [log(tmp_path, *(line(at) for at in range(0, 600, 5)))]
    replay(request(config, logs, {"policy": "schedule", "schedule": schedule}), replies.append)
    (scheduled,) = (one for one in replies if isinstance(one, SimulatedRun) and one.name == "A")
    assert scheduled.workers[-1] == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_workers": 9}, "A: min_workers (9) must not exceed max_workers (4)"),
        ({"policy": "schedule"}, "A: policy schedule needs entries"),
    ],
)
def test_wrong_settings_are_explained(config: str, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidReplay) as refused:
        replay(request(config, [log(tmp_path, line(0))], fields), lambda _: None)
    assert message in str(refused.value)


def test_model_without_requests_is_explained(config: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidReplay, match="No request of m was recorded"):
        replay(request(config, [log(tmp_path, line(0, model="other"))]), lambda _: None)


def test_invented_day_needs_no_record(config: str) -> None:
    replies: list[SimulationReply] = []
    replay(request(config, []), replies.append)
    assert isinstance(replies[0], SimulatedTraffic)
    assert replies[0].measured is None
    assert replies[0].requests > 10_000
    assert isinstance(replies[-1], SimulatedRun)
    assert 0.2 < replies[-1].utilisation < 1


def test_logs_are_read_across_a_rotation_and_a_crash(tmp_path: Path) -> None:
    older = log(tmp_path, line(10), line(-500), name="arrivals.csv.1")
    newer = log(tmp_path, line(5), line(7, "", "", "cancelled"), line(8, "3", "", "expired"), "10000")
    found = read_logs([Path(older), Path(newer)], "m", START, START + 100)
    assert [one.at - START for one in found] == [5, 8, 10]
    assert traffic_from(found, START).work == [2.0, 2.0, 2.0]  # the expired one has the mean work
    waits = measured_waits(found, 1.0)
    assert (waits.unserved, waits.wait_p50_s, waits.wait_p99_s) == (1, 0.5, None)
    assert waits.in_time == pytest.approx(2 / 3)


def test_command_answers_in_lines_and_limits_itself(config: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "controller", "replay"]
    asked = msgspec.json.encode(request(config, [log(tmp_path, line(0))]))
    answered = subprocess.run(command, input=asked, capture_output=True, check=True)
    assert [json.loads(each)["type"] for each in answered.stdout.splitlines()][0::10] == ["traffic"]
    # Several times the second that it may take, on any machine.
    busy = log(tmp_path, *(line(at / 40) for at in range(144_000)), name="busy.csv")
    others = [{"min_workers": least} for least in (1, 2, 3, 4)]
    long = msgspec.json.encode(request(config, [busy], *others, max_cpu_s=1))
    assert subprocess.run(command, input=long, capture_output=True, check=False).returncode == -signal.SIGXCPU


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"model": 1}'])
def test_input_that_is_no_request_is_refused_in_a_line(text: bytes) -> None:
    command = [sys.executable, "-m", "controller", "replay"]
    answered = subprocess.run(command, input=text, capture_output=True, check=False)
    (refused,) = (json.loads(each) for each in answered.stdout.splitlines())
    assert (answered.returncode, refused["type"], answered.stderr) == (2, "refused", b"")
    assert "is no simulation request" in refused["message"]


def test_help_does_not_read_standard_input() -> None:
    helped = subprocess.run([sys.executable, "-m", "controller", "replay", "--help"], capture_output=True, check=True)
    assert b"python -m controller replay" in helped.stdout
