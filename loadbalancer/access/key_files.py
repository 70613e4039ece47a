"""Key files: reloaded when they change, and replaced atomically."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from configs.files import durable_create, durable_write, read_regular_file
from configs.yaml_file import InvalidYaml, dump_yaml, parse_yaml

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Minimum seconds between two checks of a file.
POLL_INTERVAL_S = 1.0
#: Maximum size of a file: about 40,000 keys.
_MAX_BYTES = 8 << 20
#: Identifies the version of a file: modification time, change time, size, inode.
_Stamp = tuple[int, int, int, int]


class InvalidFile(ValueError):
    """The file is invalid. The text names the file and the problem, never its content."""


class ReloadingFile(Generic[T]):
    """The parsed content of a YAML file, reloaded within a second of a change.

    An invalid change is logged, and the previous content stays in force: a typo must not lock out all callers. If the
    file is deleted, the content also stays in force: a deletion must not admit callers without a key.
    """

    def __init__(self, path: Path, parse: Callable[[object], T], absent: T, closed: T) -> None:
        """Read the file. Raises `InvalidFile`.

        `absent` is the content while the file does not exist. `closed` is the content if an invalid file appears after
        the start: the operator wants protection, so it must not be treated as absent.
        """
        self.path = path
        self._parse = parse
        self._closed = closed
        self._last_poll = -POLL_INTERVAL_S
        self._stamp: _Stamp | str | None = _stamp(path)
        self._was_there = self._stamp is not None
        self._content = read(path, parse) if self._was_there else absent

    @property
    def current(self) -> T:
        """The content at the last check."""
        return self._content

    def get(self, now: float) -> T:
        """Return the current content. `now` is seconds on a monotonic clock."""
        if now - self._last_poll >= POLL_INTERVAL_S:
            self._last_poll = now
            self.refresh()
        return self._content

    def refresh(self) -> T:
        """Check the file now and return its content."""
        try:
            stamp: _Stamp | str | None = _stamp(self.path)
        except InvalidFile as error:
            stamp = str(error)
        if stamp == self._stamp:
            return self._content
        self._stamp = stamp
        if stamp is None:
            log.warning("%s does not exist any more; its last content stays in force until a restart", self.path)
            return self._content
        try:
            self._content = read(self.path, self._parse)
            log.info("%s has changed and is in force", self.path)
        except InvalidFile as error:
            if self._was_there:
                log.error("%s; the previous content stays in force", error)
            else:
                log.error("%s; no key is accepted", error)
                self._content = self._closed
        self._was_there = True
        return self._content


def exists(path: Path) -> bool:
    """Return whether the file exists, valid or not. Raises `InvalidFile` if that is unknown."""
    return _stamp(path) is not None


def read(path: Path, parse: Callable[[object], T]) -> T:
    """Return the content of the YAML file, parsed by `parse`. Raises `InvalidFile`."""
    try:
        return parse(parse_yaml(read_regular_file(path, _MAX_BYTES)).value)
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror}") from None
    except InvalidYaml as error:  # its message may quote the content
        raise InvalidFile(f"{path}{f':{error.line}' if error.line else ''} is not valid YAML") from None
    except msgspec.ValidationError as error:
        raise InvalidFile(f"{path}: {error}") from None
    except ValueError:
        raise InvalidFile(f"{path} is not valid") from None


def write(path: Path, tree: object) -> None:
    """Write the tree as YAML, atomically and readable by this user only. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable_write(path, dump_yaml(tree).encode())


def create(path: Path, tree: object) -> bool:
    """Write the tree like `write`, or return False if the file exists. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return durable_create(path, dump_yaml(tree).encode())


def _stamp(path: Path) -> _Stamp | None:
    """Return the version of the file; None only if it does not exist. Raises `InvalidFile` if that is unknown."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise InvalidFile(f"{path} cannot be read: it is a link to a file that does not exist") from None
        return None
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror}") from None
    # The change time covers changes of mode or owner, after which a file may become readable.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
