"""Options that all programs share: paths, and the check of a configuration with the files of its models."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest

from configs.cli import add_config_options, settings_from

_DIGITS = Path(__file__).parents[3] / "worker" / "builtin" / "digits"


def check(file: str) -> int | str | None:
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    with pytest.raises(SystemExit) as ended:
        settings_from(parser.parse_args([f"--check-config={file}"]))
    return ended.value.code


def test_check_names_each_model_that_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(_DIGITS, folder)
    (folder / "vae" / "config.json").write_bytes(b"")
    file = tmp_path / "muster.yaml"
    file.write_text(f"models: {{a: {{path: 'builtin:digits'}}, b: {{path: {folder}}}, c: {{path: /nowhere}}}}")
    assert check(str(file)) == 2
    told = capsys.readouterr()
    assert f"{file}: models.b: {folder}/vae/config.json is empty; download it again" in told.err
    assert f"{file}: models.c: no such folder or file: /nowhere" in told.err
    assert "models.a" not in told.err


def test_check_accepts_and_says_what_is_not_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "muster.yaml"
    file.write_text("models: {a: {path: 'builtin:digits'}, b: {path: org/name}, c: {engine: sim}}")
    assert check(str(file)) == 0
    told = capsys.readouterr().out
    assert "models.b.path = 'org/name': no such folder or file here; taken for a hub id" in told
    assert "valid; serves a, b, c" in told


def test_home_folder_in_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "muster.yaml").write_text("models: {a: {engine: sim}}")
    assert check("~/muster.yaml") == 0
    assert check("~nobody-here/muster.yaml") == 2
    assert "the user after ~ is not known here" in capsys.readouterr().err
