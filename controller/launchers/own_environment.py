"""Makes Muster's packages importable in another Python environment, without anything that is installed beside them."""

from __future__ import annotations

from pathlib import Path

#: What a worker imports of this program.
_PACKAGES = ("configs", "muster", "wire", "worker")


def link_packages(source: Path, folder: Path) -> Path:
    """Return a folder that holds links to the packages of a worker, and nothing else.

    `source` itself may be a folder of installed packages, which are made for this interpreter only. Raises `OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in _PACKAGES:
        link, target = folder / package, source / package
        if link.is_symlink() and link.readlink() == target:
            continue
        new = folder / f".{package}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
    return folder
