"""The limit of open files of a process."""

from __future__ import annotations

import resource

#: Where the hard limit is infinite, or absurd, a table for all of them would cost memory.
_MAX_OPEN_FILES = 1 << 20
#: Fewer suffice for no server: sockets, logs, databases, workers and some connections.
MIN_OPEN_FILES = 128
#: Least and largest number of files beside connections.
_OWN_FILES = (64, 256)


def raise_open_file_limit() -> int:
    """Raise the soft limit to the hard one, and return it. The usual soft limit of 1024 is for programs with select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def too_few_open_files() -> str | None:
    """Raise the soft limit. Return why the program cannot run with it; None if it can."""
    if (files := raise_open_file_limit()) >= MIN_OPEN_FILES:
        return None
    return f"only {files} files may be open, and {MIN_OPEN_FILES} are needed; raise `ulimit -n`"


def connections_within(files: int, wanted: int) -> int:
    """Return how many connections a process with this limit of open files may have, at most `wanted`.

    A ninth of the rest stays free for connections beyond the limit, which are accepted to be answered or closed.
    """
    return min(wanted, (files - _own_files(files)) * 8 // 9)


def is_reserved(descriptor: int) -> bool:
    """Return whether a descriptor is one of the last, which are for workers and databases alone.

    The system gives the lowest free number. Connections and uploads leave these: without any, ZeroMQ aborts.
    """
    files = raise_open_file_limit()
    return descriptor >= files - _own_files(files) // 2


def _own_files(files: int) -> int:
    """Return how many files are for sockets of workers, databases and log files."""
    least, most = _OWN_FILES
    return max(min(most, files // 4), least)
