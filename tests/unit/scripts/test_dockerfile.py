"""The Dockerfile by rules that need no engine, and the files that it copies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

from scripts.harness.processes import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
LINES = re.sub(r"\\\n\s*", " ", TEXT).splitlines()
COPIED = [word for line in LINES if line.startswith("COPY ") for word in line.split()[1:-1]]


def instructions(name: str) -> list[str]:
    return [line.removeprefix(f"{name} ") for line in LINES if line.startswith(f"{name} ")]


def test_base_image_has_a_version() -> None:
    [base] = instructions("FROM")
    assert re.fullmatch(r"python:3\.1[1-3]-slim-\w+", base)


def test_last_user_is_not_root() -> None:
    [user] = instructions("USER")
    assert user not in ("root", "0")
    assert f"--create-home {user}" in TEXT
    assert TEXT.index("USER ") > TEXT.index("pip install")


def test_commands_are_lists_and_get_signals() -> None:
    for command in (*instructions("ENTRYPOINT"), *instructions("CMD")):
        assert all(isinstance(word, str) for word in ast.literal_eval(command)), "a shell would not pass signals on"
    assert instructions("STOPSIGNAL") == ["SIGTERM"]


def test_pins_are_used_and_nothing_else_is_installed() -> None:
    assert [line for line in LINES if "pip install" in line] == ["RUN pip install --constraint constraints.txt ."]
    assert "apt-get" not in TEXT
    assert "ADD " not in TEXT


def test_everything_that_is_imported_is_copied() -> None:
    for path in COPIED:
        assert (ROOT / path).exists(), path
    packages = {path for path in COPIED if (ROOT / path / "__init__.py").exists()}
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ours = {path.partition("/")[0] for path in tracked.split()}
    for path in tracked.split():
        if path.partition("/")[0] not in packages:
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                assert name.partition(".")[0] not in ours - packages, f"{path} imports {name}, which is not copied"


def test_ignore_file_lets_exactly_the_copied_files_through() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    assert sorted(line.removeprefix("!") for line in lines if line.startswith("!")) == sorted(COPIED)


def test_arguments_are_understood() -> None:
    [entrypoint], [default] = instructions("ENTRYPOINT"), instructions("CMD")
    program, *words = ast.literal_eval(entrypoint)
    assert program == "python"
    words += [*ast.literal_eval(default), "--print-config"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
