"""Limits of CPU time and memory that a container runtime has set, for cgroup v1 and v2. Files are read by the caller.

The limits of all parent groups apply too, so the lowest one counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

#: Returns the text of a file; None if there is none, or it cannot be read.
ReadText = Callable[[str], str | None]

#: What cgroup v1 shows for no limit is about 2**63.
_UNLIMITED_BYTES = 1 << 60


class CgroupLimits(NamedTuple):
    """CPUs (a fraction is possible) and bytes of memory; None: no limit."""

    cpus: float | None = None
    memory_bytes: int | None = None
    #: Bytes in use by all processes of the group that has this memory limit.
    memory_used: int | None = None


class _Mount(NamedTuple):
    """A mounted hierarchy: the group at its top, where it is mounted, and its controllers (empty: version 2)."""

    root: str
    point: str
    controllers: frozenset[str]


def read_limits(read: ReadText) -> CgroupLimits:
    """Return the limits of this process. Files that are missing or malformed set no limit."""
    mounts = list(_mounts(read("/proc/self/mountinfo") or ""))
    groups = dict(_groups(read("/proc/self/cgroup") or ""))
    cpus = [quota for folder in _folders(mounts, groups, "cpu") if (quota := _cpu_quota(read, folder)) is not None]
    memory = [limit for folder in _folders(mounts, groups, "memory") if (limit := _memory_limit(read, folder))]
    lowest = min(memory, key=lambda each: each[0], default=None)
    return CgroupLimits(min(cpus, default=None), *(lowest or ()))


def _groups(text: str) -> Iterator[tuple[str, str]]:
    """Yield the controllers of each hierarchy with the path of the process's group. Version 2 has no controllers."""
    for line in text.splitlines():
        _, first, rest = line.partition(":")
        names, second, path = rest.partition(":")
        if first and second:
            for name in names.split(","):
                yield name, path


def _mounts(text: str) -> Iterator[_Mount]:
    for line in text.splitlines():
        front, separator, back = line.partition(" - ")
        fields, (kind, *options) = front.split(), back.split() or [""]
        if not separator or len(fields) < 5 or kind not in ("cgroup", "cgroup2"):
            continue
        names = options[-1].split(",") if kind == "cgroup" and options else []
        yield _Mount(_unescape(fields[3]), _unescape(fields[4]), frozenset(names))


def _folders(mounts: list[_Mount], groups: dict[str, str], controller: str) -> Iterator[PurePosixPath]:
    """Yield the folders of the process's group and of those above it, as far as they are mounted."""
    for mount in mounts:
        group = groups.get(controller if mount.controllers else "")
        if group is None or (mount.controllers and controller not in mount.controllers):
            continue
        own, root = PurePosixPath(group), PurePosixPath(mount.root)
        # A group outside of what is mounted is that of the host: the mount shows the container's own at its top.
        inside = own.relative_to(root) if own.is_relative_to(root) and ".." not in own.parts else PurePosixPath()
        point = PurePosixPath(mount.point)
        yield from (point / part for part in (inside, *inside.parents))


def _cpu_quota(read: ReadText, folder: PurePosixPath) -> float | None:
    version_2 = (read(f"{folder}/cpu.max") or "").split()
    if len(version_2) == 2:
        quota, period = version_2
    else:
        quota, period = read(f"{folder}/cpu.cfs_quota_us") or "", read(f"{folder}/cpu.cfs_period_us") or ""
    allowed, every = _number(quota), _number(period)
    return allowed / every if allowed and every else None


def _memory_limit(read: ReadText, folder: PurePosixPath) -> tuple[int, int | None] | None:
    """Return the limit and what is used of it."""
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit = _number(read(f"{folder}/{limit_name}") or "")
        if limit is not None and limit < _UNLIMITED_BYTES:
            return limit, _number(read(f"{folder}/{used_name}") or "")
    return None


def _number(text: str) -> int | None:
    """Return the number; None for `max`, `-1` and anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text.strip()) else None


def _unescape(path: str) -> str:
    """Decode the octal escapes of mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
