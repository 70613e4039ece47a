"""Where the programs of one instance meet on disk. Everything is derived from `data_dir`, so that a program that
restarts finds the others again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

#: Linux allows 107 bytes in the path of a Unix socket.
_LONGEST_SOCKET_PATH = 107


def private_dir(path: Path) -> Path:
    """The folder, made if need be, that only this user can enter. Raises `PermissionError` if it is another's."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user")
    path.chmod(stat.S_IRWXU)
    return path


def run_dir(data_dir: Path) -> Path:
    """State of running programs: socket, token, process records."""
    return private_dir(data_dir.resolve() / "run")


def log_dir(data_dir: Path) -> Path:
    """One log file per child process."""
    path = data_dir.resolve() / "logs"
    path.mkdir(parents=True, exist_ok=True)
    return path


def cache_dir(data_dir: Path) -> Path:
    """What can be measured again, and is kept to save time."""
    path = data_dir.resolve() / "cache"
    path.mkdir(parents=True, exist_ok=True)
    return path


def keys_file(data_dir: Path, configured: Path | None = None) -> Path:
    """The API keys: `access.keys_file`, or the usual place."""
    return configured if configured is not None else data_dir.resolve() / "keys.yaml"


def curve_dir(data_dir: Path) -> Path:
    """The keys of TCP workers: the balancer's own pair, and who else may connect."""
    return private_dir(data_dir.resolve() / "curve")


def jobs_file(data_dir: Path) -> Path:
    """The database of durable jobs. Its folder is made by who opens it, for that may fail at any time."""
    return data_dir.resolve() / "jobs" / "jobs.sqlite3"


def worker_address(data_dir: Path) -> str:
    """The ZeroMQ address at which workers meet the balancer: a Unix socket in a folder of mode 0700."""
    path = run_dir(data_dir) / "workers.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        folder = private_dir(Path(tempfile.gettempdir()) / f"muster-{os.getuid()}")
        path = folder / f"{digest}.sock"
    return f"ipc://{path}"


class StandbyFiles(NamedTuple):
    """How a controller and a spare worker understand each other."""

    #: Made by the spare: it has loaded all that it can load without a device.
    ready: Path
    #: Written by the controller: the device that the spare is to serve on.
    device: Path


def children_dir(data_dir: Path) -> Path:
    """What the controller knows of its children, for the next controller."""
    path = run_dir(data_dir) / "children"
    path.mkdir(exist_ok=True)
    return path


def standby_files(children: Path, worker: str) -> StandbyFiles:
    """Those of one spare, in the folder of all children."""
    return StandbyFiles(children / f"{worker}.ready", children / f"{worker}.order")


def controller_pid_file(data_dir: Path) -> Path:
    """The process id of the newest controller."""
    return run_dir(data_dir) / "controller.pid"


def internal_token(data_dir: Path) -> str:
    """The secret that `/internal/*` asks for: made once, readable by this user only."""
    path = run_dir(data_dir) / "internal.token"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="ascii").strip()
    with os.fdopen(handle, "w", encoding="ascii") as file:
        token = secrets.token_urlsafe(32)
        file.write(token)
    return token
