"""Whether the data directory of a running program is still there."""

from __future__ import annotations

import os
from pathlib import Path

from configs.paths import run_dir


class DataDirRemoved(OSError):
    """The data directory was removed, moved or replaced. The text names the folder."""


class DataDirCheck:
    """Notices that the data directory is gone. Without its sockets, tokens and records, nothing new can start."""

    def __init__(self, data_dir: Path) -> None:
        """Raises `OSError`."""
        self._root = data_dir.resolve()
        self._run = run_dir(data_dir)
        # Held open for good, so that no later folder gets the same inode number.
        self._held = os.open(self._run, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def problem(self) -> str | None:
        """Return what is wrong in words that follow a colon, or None. It costs one look at the folder."""
        if is_same_file(self._run, self._held):
            return None
        lost = self._run if self._root.is_dir() else self._root
        kind = "folder" if lost == self._run else "data directory"
        return f"the {kind} {lost} was removed, moved or replaced while the server runs"

    def require(self) -> None:
        """Raises `DataDirRemoved`."""
        if problem := self.problem():
            raise DataDirRemoved(problem)


def is_same_file(path: Path, file: int | os.stat_result) -> bool:
    """Return whether the path still leads to the file, which is an open descriptor or an earlier status.

    A path that cannot be looked at for another reason than absence counts as the same.
    """
    try:
        return os.path.samestat(path.lstat(), os.fstat(file) if isinstance(file, int) else file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
