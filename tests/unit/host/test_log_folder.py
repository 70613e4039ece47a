"""Logs of children: bounded while they run, and some are kept after their end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from configs.log_files import CHECK_EVERY_S
from configs.sections import Logging
from host.log_folder import LogFolder

LIMITS = Logging(max_bytes=4096, backups=1)


def put(folder: Path, name: str, size: int, age: int = 0) -> None:
    (folder / name).write_bytes(b"x" * size)
    os.utime(folder / name, (1e9 - age, 1e9 - age))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_rotation_of_running_children_only(tmp_path: Path) -> None:
    logs = LogFolder(tmp_path, LIMITS)
    put(tmp_path, "a.log", 5000)
    put(tmp_path, "b.log", 5000)
    logs.rotate(["a", "missing"], 100.0)
    assert names(tmp_path) == {"a.log", "a.log.1", "b.log"}
    logs.rotate(["b"], 100.0 + CHECK_EVERY_S / 2)
    assert names(tmp_path) == {"a.log", "a.log.1", "b.log"}
    logs.rotate(["b"], 100.0 + CHECK_EVERY_S)
    assert names(tmp_path) == {"a.log", "a.log.1", "b.log", "b.log.1"}


def test_old_logs_are_pruned_by_number_with_rotated_parts(tmp_path: Path) -> None:
    for number in range(60):
        put(tmp_path, f"w{number}.log", 10, age=number)
        put(tmp_path, f"w{number}.log.1", 10)
    put(tmp_path, "w5.log-other.log", 10, age=1000)
    put(tmp_path, "alive.log", 10, age=5000)
    LogFolder(tmp_path, LIMITS).prune(["alive"])
    kept = {f"w{number}.log{part}" for number in range(50) for part in ("", ".1")}
    assert names(tmp_path) == kept | {"alive.log"}


def test_old_logs_are_pruned_by_size(tmp_path: Path) -> None:
    for number in range(30):
        put(tmp_path, f"w{number}.log", 2048, age=number)
        put(tmp_path, f"w{number}.log.1", 4096)
    LogFolder(tmp_path, LIMITS).prune([])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 16 * LIMITS.max_bytes
    assert "w0.log" in names(tmp_path)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"w.log": "a\nb\n"}, "a\nb"),
        ({"w.log": "", "w.log.1": "before\n"}, "before"),
        ({}, ""),
        ({"w.log": "\n".join(map(str, range(100)))}, "\n".join(map(str, range(70, 100)))),
    ],
)
def test_tail(tmp_path: Path, parts: dict[str, str], expected: str) -> None:
    for name, text in parts.items():
        (tmp_path / name).write_text(text)
    assert LogFolder(tmp_path, LIMITS).tail("w") == expected
