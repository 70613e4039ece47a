"""The status tables, and the selection of the server."""

from __future__ import annotations

import argparse
import io
import pkgutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from configs.text import printable
from controller.__main__ import COMMANDS
from controller.balancer_client import HttpAnswer
from controller.cli.client import CommandFailed, _error_message, add_target_options, find_server
from controller.cli.tables import ServerStatus, format_duration, notable_decisions, render
from wire.errors import ErrorBody, ErrorDetail
from wire.messages import WorkerCounters
from wire.scaling import (
    ControllerReport,
    DecisionRecord,
    DeviceRecord,
    MachineRecord,
    ModelRecord,
    OverrideRecord,
    ReplicaRecord,
)
from wire.snapshot import ModelStats, Snapshot, WorkerStats


def decision(number: int, model: str = "m", desired: int = 1, *, valid: bool = True) -> DecisionRecord:
    return DecisionRecord(number, 1_800_000_000.0, model, "tick", 1, 1, desired, valid, f"why {number}", {"z": 1.25})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.4, "0 s"), (59, "59 s"), (60, "1 min"), (3725, "1 h 2 min"), (90_000, "1 d 1 h"), (86400, "1 d")],
)
def test_duration_is_shown_in_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_unchanged_decision_is_shown_once_per_model() -> None:
    given = [
        decision(9),
        decision(8, "n"),
        decision(7),
        decision(6, desired=2),
        decision(5, "n"),
        decision(4, desired=0),
        decision(3, valid=False),
    ]
    assert [one.number for one in notable_decisions(given, 10)] == [9, 8, 6, 4]
    assert [one.number for one in notable_decisions(given, 2)] == [9, 8]


def rendered(status: ServerStatus) -> str:
    output = io.StringIO()
    Console(width=200, file=output).print(render(status))
    return output.getvalue()


WORKER = WorkerStats("m-1", "m", "cuda:0", 7, "ready", 4, 1, 2, 0.1, 0.0125, 2.5, 3 << 30, WorkerCounters())
MANUAL = WorkerStats("far-1", "m", "cuda:0", 8, "stuck", 4, 0, 0, 0.1, 0.0, 0.0, 0, WorkerCounters())
SNAPSHOT = Snapshot(0.0, 3725.0, [ModelStats("m", 5, 3, 1.0, 65.0, 0.5, 0.25)], [WORKER, MANUAL])


def test_status_shows_all_parts() -> None:
    model = ModelRecord(
        "m", 1, 4, 3, 3, 1, 1, 1, "slo_work", "backlog", {}, "no GPU", OverrideRecord(3, 1060.0), 2, "1 of 2 to go", 1
    )
    replicas = (
        ReplicaRecord("m-1", "m", "cuda:0", 7, "ready", 3, 65.0, "abc", "too old"),
        ReplicaRecord("m-2", "m", "cuda:1", 9, "starting", 0, 5.0, "abd"),
    )
    devices = (DeviceRecord("cuda:0", "H100", ("m-1",), 80 << 30), DeviceRecord("cuda:1", "", (), None, "ECC errors"))
    report = ControllerReport(1000.0, 60.0, (model,), replicas, devices, 880.0, 0, (), 9)
    text = rendered(ServerStatus("http://here:1", SNAPSHOT, report, [decision(1, desired=2)]))
    for piece in (
        "Muster at http://here:1, up 1 h 2 min",
        "scaling is paused for 2 min: `resume` ends it",
        "1, +1 starting, 1 draining, 1 standby",
        "1 to 4",
        "1 min 5 s",
        "slo_work  backlog",
        "override ends in 1 min",
        "1 of 2 to go",
        "no GPU",
        "too old",
        "12 ms",
        "3.0 GiB",
        "80 GiB",
        "ECC errors",
        "started manually",
        "1 -> 2",
        "why 1 [z 1.25]",
    ):
        assert piece in text, f"{piece!r} in\n{text}"


def test_status_shows_machines() -> None:
    devices = [DeviceRecord(f"box/cuda:{n}", "H100", ("m-1",) * (n == 0), 80 << 30) for n in range(2)]
    box = MachineRecord("box", 2.0, False, "", ("m",), {"n": "no interpreter"}, 512 << 30, 500 << 30)
    far = MachineRecord("far", 75.0, True, "far has sent nothing for 75 s")
    away = MachineRecord("away", None, False, "not connected")
    report = ControllerReport(1000.0, 60.0, (), (), tuple(devices), None, 0, (), 9, machines=(box, far, away))
    text = rendered(ServerStatus("http://here:1", SNAPSHOT, report, []))
    rows = [line.split() for line in text.splitlines()]
    assert ["(this", "server)", "0", "0"] in rows
    own = "box 2 s ago 2 1 160 GiB 500 GiB of 512 GiB m n cannot run there: no interpreter"
    assert own.split() in rows
    assert ["away", "none", "0", "0", "not", "connected"] in rows
    assert ["far", "1", "min", "ago", "0", "0", "far", "has", "sent", "nothing", "for", "75", "s"] in rows
    without = rendered(ServerStatus("http://here:1", SNAPSHOT, msgspec.structs.replace(report, machines=()), []))
    assert "Machines" not in without


def test_without_controller_shows_balancer_state() -> None:
    text = rendered(ServerStatus("http://here:1", SNAPSHOT, None, []))
    assert "no controller reports" in text
    assert "far-1" in text
    assert "Last decisions" not in text


@pytest.mark.parametrize("name", ["[/bold]", "[red]x[/]", "\x1b]0;me\x07", "\x1b[2J", "\x9b31m", "a\nb", "\u202eabc"])
def test_names_of_other_machines_are_shown_as_text(name: str) -> None:
    worker = msgspec.structs.replace(WORKER, worker=name, model=name, device=name)
    manual = msgspec.structs.replace(MANUAL, worker=f"{name}2", model=name, device=name)
    snapshot = msgspec.structs.replace(
        SNAPSHOT, workers=[worker, manual], models=[msgspec.structs.replace(SNAPSHOT.models[0], model=name)]
    )
    model = ModelRecord(name, 1, 4, 3, 3, 1, 1, 1, name, name, {}, name, OverrideRecord(3, 1060.0), 2, name, 1)
    replicas = (ReplicaRecord(name, name, name, 7, "ready", 3, 65.0, "abc", name),)
    devices = (DeviceRecord(name, name, (name,), 80 << 30, name),)
    machines = (MachineRecord(name, 1.0, True, name, (name,), {name: name}),)
    report = ControllerReport(1000.0, 60.0, (model,), replicas, devices, 880.0, 0, (), 9, machines=machines)
    made = DecisionRecord(1, 1_800_000_000.0, name, name, 1, 1, 2, True, name, {name: 1.25})
    text = rendered(ServerStatus(f"http://here:1/{name}", snapshot, report, [made]))
    assert printable(name, 100) in text
    assert all(char.isprintable() for char in text.replace("\n", ""))


def test_error_of_the_server_is_printable() -> None:
    body = msgspec.json.encode(ErrorBody(ErrorDetail("two\nlines \x1b[31m\x9b", "server_error", "x", None)))
    assert _error_message(HttpAnswer(500, body)) == "two\nlines ?[31m?"


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_target_options(parser)
    return parser.parse_args(words)


def test_server_is_found_by_data_dir_config_and_url(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "internal.token").write_text("s" * 43 + "\n")
    (tmp_path / "run" / "config.yaml").write_text("server: {host: '::', port: 8123}\nmodels: {m: {engine: sim}}\n")
    assert find_server(arguments("--data-dir", str(tmp_path))).url == "http://[::1]:8123"
    config = tmp_path / "muster.yaml"
    config.write_text(f"data_dir: {tmp_path}\nserver: {{port: 9}}\nmodels: {{m: {{engine: sim}}}}\n")
    assert find_server(arguments("--config", str(config))).url == "http://[::1]:8123"
    (tmp_path / "run" / "config.yaml").unlink()  # a balancer that was started manually
    assert find_server(arguments("--config", str(config))).url == "http://127.0.0.1:9"
    for url in ("https://far:443/", "https://far:443/v1", "https://far:443/v1/"):
        assert find_server(arguments("--url", url)).url == "https://far:443"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data-dir", "/nowhere"], "no server has run with --data-dir /nowhere"),
        (["--url", "far:8000"], "--url far:8000 is not http://HOST:PORT"),
        (["--url", "http://"], "--url http:// is not http://HOST:PORT"),
        (["--url", "http://key@far"], "--url http://key@far is not http://HOST:PORT"),
        (["--url", "https://far", "--cert", "/nowhere.pem"], "/nowhere.pem: No such file"),
        (["--config", "/nowhere.yaml"], "the configuration cannot be read"),
    ],
)
def test_unknown_server_is_rejected(words: list[str], message: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        find_server(arguments(*words))
    assert message in str(failed.value)


@pytest.mark.parametrize("key", ["a\nb", "ü", "\udcff"])
def test_impossible_key_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MUSTER_KEY", key)
    parser = argparse.ArgumentParser()
    add_target_options(parser)
    with pytest.raises(CommandFailed, match="MUSTER_KEY has a character"):
        find_server(parser.parse_args(["--url", "http://127.0.0.1:1"]))


@pytest.mark.parametrize("words", [["simulate", "--help"], ["reload", "--help"]])
def test_full_output_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "controller", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr.count("\n") <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "8000", "status"], "a command comes before its options: python -m controller status ..."),
        (["--url", "http://far", "drain", "x"], "a command comes before its options: python -m controller drain ..."),
        (["statsu"], "unknown command: statsu; did you mean status?"),
        (["xyzzy"], "unknown command: xyzzy\n"),
        (["--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_wrong_command_line_is_explained(words: list[str], message: str) -> None:
    ended = subprocess.run([sys.executable, "-m", "controller", *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr


@pytest.mark.parametrize("function", COMMANDS.values())
def test_command_names_a_function(function: str) -> None:
    assert callable(pkgutil.resolve_name(function))
