"""Log files of bounded size. Their writers hold them open, so a full file is copied and then emptied.

Whatever a process writes to standard error is bounded so, tracebacks and messages of native libraries too. A process
checks its own log; the controller checks those of its children, which may hang.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import threading
from pathlib import Path

from configs.files import open_for_append
from configs.sections import Logging

#: Seconds between two looks at the size. A file may grow beyond its maximum by what is written in this time.
CHECK_EVERY_S = 1.0


def rotate_log(path: Path, limits: Logging) -> bool:
    """Empty the file if it has more than `max_bytes`. Its last `max_bytes` become `PATH.1`, that one `PATH.2`, ...

    Its writers must append (`O_APPEND`). A line that is written at the same moment may be lost. Where the copy fails,
    as on a full disk, the file is emptied nevertheless. Returns whether it was; raises `OSError`.
    """
    max_bytes, backups = limits.max_bytes, limits.backups
    if path.stat().st_size <= max_bytes:
        return False
    with path.open("r+b") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process does it
            return False
        size = os.fstat(log.fileno()).st_size
        if size <= max_bytes:
            return False
        if backups:
            with contextlib.suppress(OSError):
                for number in range(backups, 1, -1):
                    with contextlib.suppress(FileNotFoundError):
                        backup_path(path, number - 1).replace(backup_path(path, number))
                log.seek(size - max_bytes)
                with open_for_append(backup_path(path, 1)) as backup:
                    backup.truncate(0)
                    shutil.copyfileobj(log, backup)
        os.ftruncate(log.fileno(), 0)
    return True


def last_lines(path: Path, max_bytes: int) -> list[str]:
    """Return the lines in the last bytes of a log; none if it cannot be read."""
    try:
        with path.open("rb") as log:
            log.seek(max(log.seek(0, os.SEEK_END) - max_bytes, 0))
            return log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def backup_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def rotate_own_log(data_dir: Path, limits: Logging) -> None:
    """Bound the file that standard error is appended to from now on, if it is in the folder of logs."""
    path = appended_file(2)
    if path is not None and path.parent == data_dir.resolve() / "logs":
        threading.Thread(target=_rotate, args=(path, limits), name="log rotation", daemon=True).start()


def _rotate(path: Path, limits: Logging) -> None:
    pause = threading.Event()
    while not pause.wait(CHECK_EVERY_S):
        with contextlib.suppress(OSError):
            rotate_log(path, limits)


def appended_file(descriptor: int) -> Path | None:
    """Return the regular file that the descriptor appends to, or None for anything else."""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
            return None
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return None
