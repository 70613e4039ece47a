"""The packages that a worker needs, in whatever environment it runs. This module needs the standard library only."""

from __future__ import annotations

from collections.abc import Sequence

#: Name of the package to install, by the name of its module.
WORKER_PACKAGES = {
    "msgspec": "msgspec",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
_OLDEST, _TOO_NEW = (3, 11), (3, 14)


def environment_problem(python: str, version: tuple[int, ...], missing: Sequence[str]) -> str:
    """Return what keeps this interpreter from running a worker, and how to mend it; empty if nothing does.

    `missing` are the names of modules.
    """
    if not _OLDEST <= version[:2] < _TOO_NEW:
        return f"{python} is Python {version[0]}.{version[1]}; a worker needs 3.11, 3.12 or 3.13"
    if not missing:
        return ""
    packages = " ".join(WORKER_PACKAGES[module] for module in missing)
    return f"{python} lacks packages that a worker needs; install them: {python} -m pip install {packages}"
