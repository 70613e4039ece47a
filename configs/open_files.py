"""The limit of open files of a process."""

from __future__ import annotations

import resource

#: Where the hard limit is infinite, or absurd, a table for all of them would cost memory.
_MAX_OPEN_FILES = 1 << 20
#: Fewer suffice for no server: sockets, logs, databases and some connections.
MIN_OPEN_FILES = 64


def raise_open_file_limit() -> int:
    """Raise the soft limit to the hard one, and return it. The usual soft limit of 1024 is for programs with select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def connections_within(files: int, wanted: int) -> int:
    """Return how many connections a process with this limit of open files may have, at most `wanted`.

    A ninth of the rest stays free for connections beyond the limit, which are accepted to be answered or closed.
    """
    own = min(256, files // 4)  # for sockets of workers, databases and log files
    return min(wanted, (files - own) * 8 // 9)
