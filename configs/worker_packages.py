"""What a worker needs in the Python environment of its engine. This module needs the standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

#: Name of the package to install, by the name of its module.
WORKER_PACKAGES = {
    "msgspec": "msgspec",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
#: What a worker imports of this program.
_OWN_PACKAGES = ("configs", "muster", "wire", "worker")
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


def link_packages(source: Path, folder: Path) -> Path:
    """Return a folder that holds links to the packages of a worker, and nothing else.

    `source` itself may be a folder of installed packages, which are made for this interpreter only. Raises `OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in _OWN_PACKAGES:
        link, target = folder / package, source / package
        if link.is_symlink() and link.readlink() == target:
            continue
        new = folder / f".{package}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
    return folder
