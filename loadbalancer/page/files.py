"""The files of the page, read once, with their hashes as entity tags."""

from __future__ import annotations

import gzip
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "static"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Smaller files are sent as they are.
_MIN_GZIP_BYTES = 1024


class PageFile(NamedTuple):
    """One file, as it is and compressed."""

    media_type: str
    etag: str
    data: bytes
    #: None if it is small.
    compressed: bytes | None


@lru_cache(maxsize=128)  # of names in the folder only
def _read(name: str) -> PageFile:
    path = FOLDER / name
    data = path.read_bytes()
    compressed = gzip.compress(data, mtime=0) if len(data) >= _MIN_GZIP_BYTES else None
    return PageFile(_MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"', data, compressed)


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    """Return the names of the files that may be asked for: no client chooses a path."""
    files = (path for path in FOLDER.rglob("*") if path.suffix in _MEDIA_TYPES)
    return frozenset(path.relative_to(FOLDER).as_posix() for path in files)


def page_file(name: str) -> PageFile | None:
    """Return the file of this name below the folder; None if there is none."""
    return _read(name) if name in _names() else None
