"""Paths of the files and sockets of an instance, all derived from `data_dir`: restarted programs find them again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from pathlib import Path
from typing import NamedTuple

from configs.files import durable_write, read_regular_file
from configs.text import is_utf8

#: Maximum length of the path of a Unix socket on Linux, in bytes.
_MAX_SOCKET_PATH = 107
_INTERNAL_TOKEN = "internal.token"  # noqa: S105 - a file name
#: Random bytes of the internal token, and their length in base64.
TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43,}")


def private_dir(path: Path) -> Path:
    """Create the folder with access for this user only.

    Raises `OSError` with the path: for a link, for anything else that is not a folder, and for another user's folder.
    """
    path.parent.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=stat.S_IRWXU)
    if path.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "It is a link; a folder is needed here", str(path))
    # Opened without following links, so that owner and mode are of the folder that was checked.
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "It belongs to another user", str(path))
        if stat.S_IMODE(status.st_mode) != stat.S_IRWXU:
            os.fchmod(handle, stat.S_IRWXU)
    finally:
        os.close(handle)
    return path


def run_dir(data_dir: Path) -> Path:
    """Return the folder of sockets, tokens and process records."""
    return private_dir(data_dir.resolve() / "run")


def log_dir(data_dir: Path) -> Path:
    """Return the folder of logs, which contain addresses of clients and names of keys."""
    return private_dir((data_dir.resolve() / "logs").resolve())


def cache_dir(data_dir: Path) -> Path:
    """Return the folder of measurements that can be repeated."""
    path = data_dir.resolve() / "cache"
    path.mkdir(parents=True, exist_ok=True)
    return path


def keys_file(data_dir: Path, configured: Path | None = None) -> Path:
    """Return the file of API keys: `access.keys_file`, or the default."""
    return configured if configured is not None else data_dir.resolve() / "keys.yaml"


def keys_required_file(data_dir: Path) -> Path:
    """Return the file that exists once API keys have been in force. The server then does not start without keys."""
    return data_dir.resolve() / "keys.required"


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
    # ZeroMQ takes UTF-8 only.
    return is_utf8(str(path)) and len(os.fsencode(path)) <= _MAX_SOCKET_PATH


def _short_dir() -> Path:
    """Return a private folder with a short path. Raises `OSError`."""
    import tempfile  # with what it imports 0.4 MB, for a rare case

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


def served_file(children: Path, worker: str) -> Path:
    """Return the file that a worker creates when it starts to serve: what ends it later is no failed start."""
    return children / f"{worker}.served"


def standby_files(children: Path, worker: str) -> StandbyFiles:
    return StandbyFiles(children / f"{worker}.ready", children / f"{worker}.order")


def controller_pid_file(data_dir: Path) -> Path:
    """Return the file with the process id of the newest controller."""
    return run_dir(data_dir) / "controller.pid"


def internal_token(data_dir: Path) -> str:
    """Return the secret for `/internal/*`. It is created once, readable by this user only.

    An empty or torn file is replaced. Raises `OSError` with the path if the file can be neither read nor written.
    """
    path = run_dir(data_dir) / _INTERNAL_TOKEN
    token = _read_token(path)
    if token is None:
        from filelock import FileLock  # not in the environment of an engine, whose worker needs no token

        with FileLock(
            path.with_name(".internal.token.lock"), timeout=10
        ):  # two processes must not replace each other's
            token = _read_token(path)
            if token is None:
                token = secrets.token_urlsafe(TOKEN_BYTES)
                durable_write(path, token.encode("ascii"))
    return token


def existing_internal_token(data_dir: Path) -> str | None:
    """Return the secret for `/internal/*` if a server has created it; never create it. Raises `OSError`."""
    return _read_token(data_dir.resolve() / "run" / _INTERNAL_TOKEN)


def _read_token(path: Path) -> str | None:
    """Return the token; None if there is no file or no complete token in it."""
    try:
        text = read_regular_file(path).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    return text if _TOKEN.fullmatch(text) else None
