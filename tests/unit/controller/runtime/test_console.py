"""The example request that the controller prints."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from controller.runtime.console import ServerConsole, TaskKind, curl_example

URL = "http://127.0.0.1:8000"
PLAIN = [
    *("curl", "-s", f"{URL}/v1/images/generations", "-H", "content-type: application/json"),
    *("-d", '{"model": "it\'s", "prompt": "a handwritten seven"}'),
]


@pytest.mark.parametrize(
    ("certificate", "keyed", "words"),
    [
        (None, False, PLAIN),
        (None, True, [*PLAIN[:5], "-H", "authorization: Bearer $MUSTER_KEY", *PLAIN[5:]]),
        (Path("/my files/cert.pem"), False, [*PLAIN[:2], "--cacert", "/my files/cert.pem", *PLAIN[2:]]),
    ],
)
def test_example_uses_certificate_and_key(certificate: Path | None, keyed: bool, words: list[str]) -> None:
    line = curl_example(URL, "it's", certificate=certificate, keyed=keyed)
    assert shlex.split(line) == words
    assert ('"authorization: Bearer $MUSTER_KEY"' in line) is keyed, "the shell expands the variable"


def test_progress_text_like_markup_is_shown_as_text() -> None:
    output = io.StringIO()
    console = ServerConsole(Console(file=output, force_terminal=True, width=100))
    for text in ("loading ...", "loading [/bold] ...", None):
        console.busy(text)
    assert "loading [/bold] ..." in output.getvalue()


def test_without_a_terminal_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console = ServerConsole(None)
    console.busy("loading ...")
    console.line("models: [/bold] " + "m" * 200)
    console.busy(None)
    assert capsys.readouterr().out == "models: [/bold] " + "m" * 200 + "\n"


def test_command_calls_an_engine() -> None:
    line = curl_example(URL, "org/tickets", certificate=None, keyed=False, task="call")
    assert shlex.split(line)[2:] == [
        f"{URL}/v1/models/org/tickets:predict",
        *("-H", "content-type: application/json", "-d", '{"instances": ["an input"]}'),
    ]


@pytest.mark.parametrize(("task", "is_named"), [("call", True), ("image", False), ("text", False)])
def test_type_of_an_input_is_named_beside_a_call(
    capsys: pytest.CaptureFixture[str], task: TaskKind, is_named: bool
) -> None:
    ServerConsole(None).ready(URL, "m", certificate=None, keyed=False, task=task)
    *_, hint, command, _ = capsys.readouterr().out.splitlines()
    assert command == "  " + curl_example(URL, "m", certificate=None, keyed=False, task=task)
    assert (f"its type is in {URL}/docs" in hint) is is_named
