"""The command line, the plan, the mix of requests, and what a server offers."""

from __future__ import annotations

import argparse
import random
import stat
from pathlib import Path
from typing import Any

import pytest

from scripts.loadtest_lib import target
from scripts.loadtest_lib.locust_process import PYTHON_VARIABLE, locust_command, locust_python
from scripts.loadtest_lib.mix import CHAT, EDITS, JOBS, models_for, random_request, recorded_request
from scripts.loadtest_lib.options import make_plan, parse_mix, parse_options
from scripts.loadtest_lib.plan import LoadPlan, RecordedRequest, TargetModel
from scripts.loadtest_lib.report import describe, public_arguments
from scripts.loadtest_lib.shapes import LoadShape

IMAGE = TargetModel("sd", "image", "64x64", 10, 30, edits=True)
PLAIN = TargetModel("plain", "image", "64x64", 10, 30, edits=False)
WORDS = TargetModel("words", "text")
MODELS = (IMAGE, PLAIN, WORDS)


def plan(**changes: Any) -> LoadPlan:
    values: dict[str, Any] = {
        "url": "http://127.0.0.1:1",
        "folder": Path("/x"),
        "shape": LoadShape("steady", 10.0),
        "models": MODELS,
        "weights": {"image": 1.0},
    }
    return LoadPlan(**(values | changes))


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "either --users"),
        (["--users", "3", "--rate", "2"], "either --users"),
        (["--shape", "replay"], "needs --recording"),
        (["--shape", "replay", "--recording", "x", "--rate", "2"], "do not go with"),
        (["--users", "3", "--recording", "x"], "needs --shape replay"),
        (["--users", "3", "--ramp", "90"], "shorter than --seconds"),
        (["--users", "3", "--shape", "ramp", "--ramp", "9"], "without --ramp"),
        (["--users", "3", "--url", "http://x", "--config", "y"], "--config is for"),
        (["--users", "0"], "between 1 and"),
        (["--rate", "-1"], "above 0"),
        (["--users", "1", "--mix", "video=1"], "unknown kind 'video'"),
        (["--users", "1", "--mix", "image=0"], "one weight must be above 0"),
        (["--users", "1", "--mix", "image=nan"], "between 0 and a million"),
    ],
)
def test_contradictions_are_refused(argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(argv, "")
    assert reason in capsys.readouterr().err


def test_plan_survives_the_file(tmp_path: Path) -> None:
    written = plan(
        folder=tmp_path, key_file=tmp_path / "keys", recorded=(RecordedRequest(1.0, "sd", 3, "64x64", 2),), rate=3.0
    )
    written.write(tmp_path / "plan.json")
    assert LoadPlan.read(tmp_path / "plan.json") == written


def test_keys_are_in_their_file_and_not_in_the_plan(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\n\nsk-two\n")
    written = plan(folder=tmp_path, key_file=tmp_path / "keys")
    written.write(tmp_path / "plan.json")
    assert written.keys() == ["sk-one", "sk-two"]
    assert "sk-" not in (tmp_path / "plan.json").read_text()


def test_kinds_without_a_model_are_left_out(tmp_path: Path) -> None:
    options = parse_options(["--users", "3", "--mix", "image=1,chat=2"], "")
    assert make_plan(options, "http://x", (IMAGE,), tmp_path).weights == {"image": 1.0}
    with pytest.raises(ValueError, match="no model of the server fits chat"):
        make_plan(parse_options(["--users", "3", "--mix", "chat=2"], ""), "http://x", (IMAGE,), tmp_path)


def test_mix_is_parsed() -> None:
    assert parse_mix("image=2.5,chat") == {"image": 2.5, "chat": 1.0}
    with pytest.raises(argparse.ArgumentTypeError, match="not a number"):
        parse_mix("image=x")


@pytest.mark.parametrize(("kind", "path"), [("edit", EDITS), ("job", JOBS), ("chat", CHAT)])
def test_requests_fit_their_kind(kind: str, path: str) -> None:
    rng = random.Random(1)
    assert {random_request(plan(), kind, rng).path for _ in range(20)} == {path}


def test_images_have_mixed_steps_counts_and_streams() -> None:
    rng = random.Random(1)
    requests = [random_request(plan(), "image", rng) for _ in range(300)]
    assert {each.body["num_inference_steps"] for each in requests} == set(range(10, 31))
    assert {each.body["n"] for each in requests} == {1, 2, 4}
    assert {each.name for each in requests} == {"image", "image stream"}
    assert {each.body["model"] for each in requests} == {"sd", "plain"}


def test_edits_go_to_models_that_take_them() -> None:
    assert models_for(MODELS, "edit") == [IMAGE]


@pytest.mark.parametrize(
    ("recorded", "model"),
    [
        (RecordedRequest(0.0, "plain", 3, "64x64", 1), "plain"),
        (RecordedRequest(0.0, "gone", 3, "64x64", 1), "sd"),
        (RecordedRequest(0.0, "gone", 3, "", 1), "words"),
    ],
)
def test_recorded_requests_find_a_model(recorded: RecordedRequest, model: str) -> None:
    assert recorded_request(recorded, MODELS, random.Random(1)).body["model"] == model


def test_model_of_the_server_is_read() -> None:
    entry = {
        "id": "sd",
        "task": "image",
        "defaults": {"size": "64x64", "steps": 20},
        "limits": {"max_steps": 25},
        "modes": ["text", "image"],
    }
    assert target._model(entry) == TargetModel("sd", "image", "64x64", 10, 25, edits=True)
    assert target._model({"id": "x", "task": "call"}) is None


def test_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(target.TargetError, match="does not list its models"):
        target.running_target("http://127.0.0.1:9/", None, None).models()


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (401, b"{}", "needs an API key: --key-file"),
        (200, b"<html>", "is it a Muster server"),
        (404, b'{"error": {}}', "status 404"),
        (200, b'{"data": [{"id": "x"}]}', "serves no model for images or texts"),
    ],
)
def test_server_that_cannot_be_tested_says_why(status: int, content: bytes, reason: str) -> None:
    with pytest.raises(target.TargetError, match=reason):
        target.usable_models("http://x", status, content)


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_key_file_without_a_key_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(target.TargetError, match="key"):
        target.running_target("http://x", file, None)


def test_command_has_no_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\n")
    command = locust_command(Path("/py"), plan(key_file=tmp_path / "keys", processes=2), web_port=None)
    assert "--headless" in command
    assert command[command.index("--processes") + 1] == "2"
    assert not any("sk-one" in part for part in command)


def test_web_page_is_on_loopback() -> None:
    command = locust_command(Path("/py"), plan(), web_port=8089)
    assert command[command.index("--web-host") + 1] == "127.0.0.1"
    assert "--headless" not in command


def test_variable_names_a_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, "/opt/locust/bin/python")
    assert locust_python() == Path("/opt/locust/bin/python")


def test_report_names_no_place_of_this_machine() -> None:
    argv = ["--url", "http://10.0.0.1", "--key-file=/home/x/key", "--html", "/tmp/a/r.html", "--users", "3"]
    assert public_arguments(argv) == ["--url", "URL", "--key-file=key", "--html", "r.html", "--users", "3"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"users": 5, "pause_s": 2.0}, "closed loop, up to 5 users"),
        ({"rate": 5.0}, "open loop, up to 5 requests/s"),
        ({"recorded": (RecordedRequest(1.0, "sd", 3, "64x64", 2),)}, "1 recorded requests"),
    ],
)
def test_description(changes: dict[str, Any], text: str) -> None:
    assert text in describe(plan(**changes), started_here=True)


def test_script_can_be_executed() -> None:
    file = Path(__file__).parents[3] / "scripts" / "loadtest.py"
    assert file.stat().st_mode & stat.S_IXUSR
