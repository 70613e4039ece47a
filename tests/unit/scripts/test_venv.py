"""`scripts/venv.sh`: an environment counts only when it works and was finished for this place and interpreter.

The project is a small one without dependencies. pip and the environments are real; pip is that of the tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pip
import pytest

from scripts.harness.processes import PATIENCE_S, wait_until

_SCRIPT = Path(__file__).parents[3] / "scripts" / "venv.sh"
_PIP = Path(str(pip.__file__)).parent
#: `python -m venv` without the bundled pip, which takes seconds to unpack.
_PYTHON = """#!/usr/bin/env bash
if [ "$1 $2" = "-m venv" ]; then
    {python} -m venv --without-pip "$3" && ln -s {pip} "$(echo "$3"/lib/python*/site-packages)"
else
    exec {python} "$@"
fi
"""
_PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "small"
version = "1"
"""
_METADATA = "Metadata-Version: 2.1\nName: small\nVersion: 1\n"
#: Waits while there is a file `hold`, so that a test can act during the installation.
_BACKEND = """
import pathlib, time, zipfile
root = pathlib.Path(__file__).parent
def build_editable(folder, config_settings=None, metadata_directory=None):
    (root / "building").touch()
    while (root / "hold").exists():
        time.sleep(0.02)
    if (root / "failure").exists():
        raise OSError((root / "failure").read_text())
    with zipfile.ZipFile(pathlib.Path(folder) / "small-1-py3-none-any.whl", "w") as wheel:
        info = "small-1.dist-info"
        wheel.writestr("small.pth", str(root))
        wheel.writestr("whole.py", "x = 1\\n")
        wheel.writestr("template.py", "class {{ name }}: ...\\n")
        wheel.writestr(f"{info}/METADATA", (root / "metadata").read_text())
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "small-1-py3-none-any.whl"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(_SCRIPT, root / "scripts")
    (root / "constraints.txt").write_text("")
    (root / "pyproject.toml").write_text(_PROJECT)
    (root / "backend.py").write_text(_BACKEND)
    (root / "metadata").write_text(_METADATA)
    python = root / "python"
    python.write_text(_PYTHON.format(python=sys.executable, pip=_PIP))
    python.chmod(0o755)
    return root


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    made: list[subprocess.Popen[str]] = []

    def one(root: Path = project, **environment: str) -> subprocess.Popen[str]:
        command = f"set -euo pipefail; source {root}/scripts/venv.sh; ensure_venv ''; echo started"
        own = {"PYTHON": str(root / "python"), "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"} | environment
        made.append(
            subprocess.Popen(
                ["bash", "-c", command],
                env=os.environ | own,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return made[-1]

    yield one
    for process in made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def output(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=PATIENCE_S)[0]


def test_packages_are_compiled_but_for_templates(project: Path, start: Start) -> None:
    assert output(start(project)).endswith("started\n")
    compiled = {path.name.partition(".")[0] for path in (project / ".venv").rglob("*.pyc")}
    assert "whole" in compiled
    assert "template" not in compiled


def test_finished_environment_is_used_and_a_broken_one_made_again(project: Path, start: Start) -> None:
    python = project / ".venv" / "bin" / "python"
    assert "setting up .venv" in output(start(project))
    assert output(start(project)) == "started\n", "the second start does nothing"
    made = (project / ".venv" / "pyvenv.cfg").stat().st_mtime_ns

    (project / "constraints.txt").write_text("# another pin\n")
    assert "again" not in output(start(project)), "it is completed, not thrown away"
    assert (project / ".venv" / "pyvenv.cfg").stat().st_mtime_ns == made

    python.unlink()
    python.symlink_to("/nowhere/python3")
    told = output(start(project))
    assert "making .venv again: its interpreter does not run any more" in told
    assert told.endswith("started\n")

    moved = project.rename(project.with_name("moved"))
    told = output(start(moved))
    assert f"making .venv again: it was made for Python 3.{sys.version_info[1]} {project}/.venv" in told
    assert told.endswith("started\n")

    mark = moved / ".venv" / ".muster-serve"
    mark.write_text(mark.read_text().replace("\n3.", "\n2."))
    assert "making .venv again: it was made for Python 2." in output(start(moved))


def test_interrupted_setup_is_not_taken_for_finished(project: Path, start: Start) -> None:
    (project / "hold").touch()
    interrupted = start(project)
    wait_until((project / "building").exists, "pip to build")
    os.killpg(interrupted.pid, signal.SIGINT)
    assert interrupted.wait(PATIENCE_S) != 0
    (project / "hold").unlink()
    told = output(start(project))
    assert "making .venv again: it was not finished" in told
    assert told.endswith("started\n")


def test_interrupted_update_is_completed(project: Path, start: Start) -> None:
    output(start(project))
    (project / "building").unlink()
    (project / "hold").touch()
    before = (project / "constraints.txt").read_text()
    (project / "constraints.txt").write_text("# another pin\n")
    interrupted = start(project)
    wait_until((project / "building").exists, "pip to build")
    os.killpg(interrupted.pid, signal.SIGINT)
    interrupted.wait(PATIENCE_S)
    (project / "hold").unlink()
    (project / "constraints.txt").write_text(before)
    assert "setting up .venv" in output(start(project)), "its packages may be of two versions"


def test_two_starts_at_once_make_one_environment(project: Path, start: Start) -> None:
    (project / "hold").touch()
    first = start(project)
    wait_until((project / "building").exists, "pip to build")
    second = start(project)
    (project / "hold").unlink()
    assert output(first).endswith("started\n")
    told = output(second)
    assert told in ("muster: waiting for another start, which sets up .venv ...\nstarted\n", "started\n")


@pytest.mark.parametrize(
    ("python", "failure", "sentence"),
    [
        ("echo 'Error: ensurepip is not available'; exit 1", "", "apt install python3-venv"),
        ("echo 'No module named venv' >&2; exit 1", "", "apt install python3-venv"),
        ("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1", "", "the disk is full"),
        ("echo 'Error: [Errno 13] Permission denied' >&2; exit 1", "", "cannot be written by this user"),
        ("echo 'something else' >&2; exit 1", "", "could not be set up: something else"),
        ("", "[Errno 28] No space left on device", "the disk is full"),
    ],
)
def test_failure_is_one_sentence_and_leaves_no_mark(
    project: Path, python: str, failure: str, sentence: str, start: Start
) -> None:
    if python:
        text = (project / "python").read_text()
        (project / "python").write_text(text.replace(f"    {sys.executable} -m venv", f"    {python}; :", 1))
    if failure:
        (project / "failure").write_text(failure)
    failed = start(project)
    *_, last = output(failed).splitlines()
    assert last.startswith("muster: ")
    assert sentence in last
    assert failed.returncode != 0
    assert not list(project.glob(".venv/.muster-*"))


def test_unreachable_index_is_named(project: Path, start: Start) -> None:
    (project / "metadata").write_text(f"{_METADATA}Requires-Dist: some-package\n")
    failed = start(project, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_CONFIG_FILE=os.devnull)
    assert "no package index could be reached; check the network" in output(failed)
    assert failed.returncode != 0


def test_link_is_never_removed(project: Path, start: Start) -> None:
    elsewhere = project.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (project / ".venv").symlink_to(elsewhere)
    refused = start(project)
    assert f".venv is a link to {elsewhere}, and cannot be used" in output(refused)
    assert refused.returncode != 0
    assert (elsewhere / "precious").exists()
