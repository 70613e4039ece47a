"""The log folder of child processes: file names, rotation, and retention after exits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from configs.log_files import CHECK_EVERY_S, backup_path, last_lines, rotate_log
from configs.sections import Logging

_TAIL_LINES = 30
_TAIL_BYTES = 8192
#: Maximum number of retained logs of exited children, and their total size in full log files.
_MAX_ENDED, _MAX_FULL = 50, 16


class LogFolder:
    """The logs of all children: `NAME.log`, and the rotated parts `NAME.log.1`, ..."""

    def __init__(self, folder: Path, limits: Logging) -> None:
        self._folder = folder
        self._limits = limits
        self._checked_at = float("-inf")

    def path(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def tail(self, name: str) -> str:
        """Return the last lines of a log; right after a rotation, those of the previous part."""
        for path in (self.path(name), backup_path(self.path(name), 1)):
            if lines := last_lines(path, _TAIL_BYTES):
                return "\n".join(lines[-_TAIL_LINES:])
        return ""

    def rotate(self, names: Iterable[str], now: float) -> None:
        """Rotate the large logs of running children. It checks at most once per `CHECK_EVERY_S`."""
        if now - self._checked_at < CHECK_EVERY_S:
            return
        self._checked_at = now
        for name in names:
            with contextlib.suppress(OSError):
                rotate_log(self.path(name), self._limits)

    def prune(self, running: Iterable[str]) -> None:
        """Delete the oldest logs of exited children beyond the limits, with their rotated parts."""
        in_use = {self.path(name) for name in running}
        by_age = sorted(set(self._folder.glob("*.log")) - in_use, key=_changed_at, reverse=True)
        total = 0
        for count, log in enumerate(by_age, 1):
            parts = [log, *_backups(log)]
            total += sum(_size(part) for part in parts)
            if count > _MAX_ENDED or total > _MAX_FULL * self._limits.max_bytes:
                for part in parts:
                    part.unlink(missing_ok=True)


def _backups(log: Path) -> Iterator[Path]:
    number = 1
    while (path := backup_path(log, number)).exists():
        yield path
        number += 1


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
