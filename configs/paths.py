"""Paths of the files and sockets of an instance, all derived from `data_dir`: restarted programs find them again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

#: Maximum length of the path of a Unix socket on Linux, in bytes.
_MAX_SOCKET_PATH = 107


def private_dir(path: Path) -> Path:
    """Create the folder with access for this user only. Raises `PermissionError` if another user owns it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user")
    path.chmod(stat.S_IRWXU)
    return path


def run_dir(data_dir: Path) -> Path:
    """Return the folder of sockets, tokens and process records."""
    return private_dir(data_dir.resolve() / "run")


def log_dir(data_dir: Path) -> Path:
    path = data_dir.resolve() / "logs"
    path.mkdir(parents=True, exist_ok=True)
    return path


def cache_dir(data_dir: Path) -> Path:
    """Return the folder of measurements that can be repeated."""
    path = data_dir.resolve() / "cache"
    path.mkdir(parents=True, exist_ok=True)
    return path


def keys_file(data_dir: Path, configured: Path | None = None) -> Path:
    """Return the file of API keys: `access.keys_file`, or the default."""
    return configured if configured is not None else data_dir.resolve() / "keys.yaml"


def curve_dir(data_dir: Path) -> Path:
    """Return the folder of CURVE keys: the balancer's pair and the public keys of TCP workers."""
    return private_dir(data_dir.resolve() / "curve")


def jobs_file(data_dir: Path) -> Path:
    """Return the database of durable jobs. Its folder may not exist yet: creating it is part of opening it."""
    return data_dir.resolve() / "jobs" / "jobs.sqlite3"


def worker_address(data_dir: Path) -> str:
    """Return the ZeroMQ address of the balancer: a Unix socket in a folder of mode 0700.

    If the path would be too long for a socket, it is in a short folder outside of `data_dir`, the same for all
    programs of this user whatever their environment. Raises `OSError` if there is none.
    """
    path = run_dir(data_dir) / "workers.sock"
    if not _fits_socket(path):
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        path = _short_dir() / f"{digest}.sock"
    return f"ipc://{path}"


def _fits_socket(path: Path) -> bool:
    return len(os.fsencode(path)) <= _MAX_SOCKET_PATH


def _short_dir() -> Path:
    """Return a private folder with a short path. Raises `OSError`."""
    user = os.getuid()
    for place in (Path("/run/user") / str(user), Path("/tmp"), Path("/var/tmp"), Path(tempfile.gettempdir())):  # noqa: S108 - private_dir
        folder = place / f"muster-{user}"
        # Another user may have put a link there.
        if place.is_dir() and not folder.is_symlink() and _fits_socket(folder / f"{'0' * 16}.sock"):
            with contextlib.suppress(OSError):
                return private_dir(folder)
    raise OSError(
        errno.ENAMETOOLONG,
        f"its path is longer than a socket's may be ({_MAX_SOCKET_PATH} bytes), and neither /tmp nor TMPDIR has a "
        "place for one; give a shorter --data-dir",
    )


class StandbyFiles(NamedTuple):
    """The files by which a controller and a standby worker communicate."""

    #: Created by the worker when it has loaded everything that needs no device.
    ready: Path
    #: Written by the controller: the device to serve on.
    device: Path


def children_dir(data_dir: Path) -> Path:
    """Return the folder of process records, from which the next controller adopts the processes."""
    path = run_dir(data_dir) / "children"
    path.mkdir(exist_ok=True)
    return path


def standby_files(children: Path, worker: str) -> StandbyFiles:
    return StandbyFiles(children / f"{worker}.ready", children / f"{worker}.order")


def controller_pid_file(data_dir: Path) -> Path:
    """Return the file with the process id of the newest controller."""
    return run_dir(data_dir) / "controller.pid"


def internal_token(data_dir: Path) -> str:
    """Return the secret for `/internal/*`. It is created once, readable by this user only."""
    path = run_dir(data_dir) / "internal.token"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="ascii").strip()
    with os.fdopen(handle, "w", encoding="ascii") as file:
        token = secrets.token_urlsafe(32)
        file.write(token)
    return token
