"""What happens to the data directory of a running program."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.data_dir import DataDirCheck, DataDirRemoved


def replace(root: Path) -> None:
    shutil.rmtree(root)
    (root / "run").mkdir(parents=True)


def put_a_file_there(root: Path) -> None:
    shutil.rmtree(root)
    root.touch()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (shutil.rmtree, "data directory {root}"),
        (lambda root: root.rename(root.with_name("moved")), "data directory {root}"),
        (put_a_file_there, "data directory {root}"),
        (replace, "folder {root}/run"),
        (lambda root: shutil.rmtree(root / "run"), "folder {root}/run"),
        (lambda root: (root / "run").rename(root / "other"), "folder {root}/run"),
    ],
)
def test_removed_data_dir_is_noticed(tmp_path: Path, change: Callable[[Path], object], named: str) -> None:
    root = tmp_path / "data"
    check = DataDirCheck(root)
    assert check.problem() is None
    check.require()
    change(root)
    expected = f"the {named.format(root=root)} was removed, moved or replaced while the server runs"
    assert check.problem() == expected
    with pytest.raises(DataDirRemoved, match="was removed, moved or replaced"):
        check.require()


def test_changes_inside_the_data_dir_do_not_matter(tmp_path: Path) -> None:
    root = tmp_path / "data"
    check = DataDirCheck(root)
    (root / "run" / "new").touch()
    (root / "jobs").mkdir()
    assert check.problem() is None


def test_data_dir_that_comes_back_is_the_same(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    check = DataDirCheck(root)
    root.rename(elsewhere)
    assert check.problem() is not None
    elsewhere.rename(root)
    assert check.problem() is None
