"""What `scripts/keys` refuses, and that nothing has changed then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadbalancer.access.api_keys import parse_ring
from loadbalancer.access.key_files import read
from loadbalancer.access.keys_cli import main


def changed(data_dir: Path) -> set[str]:
    return {path.name for path in data_dir.glob("*") if path.name.startswith("keys")}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["a b"], "the name 'a b' is not allowed: it has 1 to 63 letters"),
        ([""], "the name '' is not allowed"),
        (["x" * 64], "is not allowed"),
        (["a\n"], r"the name 'a\n' is not allowed"),
        (["\udcff"], r"the name '\udcff' is not allowed"),
        (["../x"], "is not allowed"),
        (["--", "-x"], "is not allowed"),
        (["internal"], "a key must not be named internal"),
        (["a", "--weight", "nan"], "--weight nan: Expected float > 0"),
        (["a", "--weight", "inf"], "--weight inf: Expected float <= 1000000"),
        (["a", "--requests-per-minute", "0"], "--requests-per-minute 0: Expected int >= 1"),
        (["a", "--max-concurrent", "-1"], "--max-concurrent -1: Expected int >= 1"),
    ],
)
def test_refused_key_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    """Not even the record that keys are in force: the next start would fail."""
    assert main(["--data-dir", str(tmp_path), "add", *words]) == 2
    assert part in capsys.readouterr().err
    assert not changed(tmp_path)


def test_refused_name_of_a_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data-dir", str(tmp_path), "add-worker", "a b", str(tmp_path / "secret")]) == 2
    assert "the name 'a b' is not allowed" in capsys.readouterr().err
    assert not (tmp_path / "secret").exists()


@pytest.mark.parametrize("output", ["/dev/full", None])
def test_key_that_cannot_be_shown_is_not_kept(tmp_path: Path, output: str | None) -> None:
    def redirect() -> None:
        if output is None:
            os.close(1)
        else:
            os.dup2(os.open(output, os.O_WRONLY), 1)

    words = [sys.executable, "-m", "loadbalancer.access.keys_cli", "--data-dir", str(tmp_path), "add", "a"]
    done = subprocess.run(words, stderr=subprocess.PIPE, preexec_fn=redirect, text=True, check=False)
    assert done.returncode == 2
    assert "the key cannot be shown" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not read(tmp_path / "keys.yaml", parse_ring).keys
