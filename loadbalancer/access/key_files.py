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
#: Least seconds between two looks at a file.
POLL_INTERVAL_S = 1.0
#: Maximum size of a file: about 40,000 keys.
_MAX_BYTES = 8 << 20
#: What tells one state of a file from the next.
_Stamp = tuple[int, int, int, int]


class InvalidFile(ValueError):
    """The file is invalid. The text names the file and the problem, never its content."""


class ReloadingFile(Generic[T]):
    """The content of a YAML file as of now, or of a second ago.

    A change that cannot be used keeps what was there before and is told in the log: a slip of the editor must not
    lock everyone out. A file that vanishes keeps it too: deleting it must not let everyone in.
    """

    def __init__(self, path: Path, parse: Callable[[object], T], absent: T, closed: T) -> None:
        """Reads the file. `absent` stands for one that is not there yet.

        `closed` stands for a file that has appeared since the start and cannot be used: whoever put it there wants to
        be protected by it. Raises `InvalidFile`.
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
        """What the file held at the last look."""
        return self._content

    def get(self, now: float) -> T:
        """What the file holds. `now` is seconds on a clock that never goes back."""
        if now - self._last_poll < POLL_INTERVAL_S:
            return self._content
        self._last_poll = now
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
                log.error("%s; what it said before stays in force", error)
            else:
                log.error("%s; nobody is let in by it", error)
                self._content = self._closed
        self._was_there = True
        return self._content


def exists(path: Path) -> bool:
    """True if there is something of this name, usable or not. Raises `InvalidFile` if that cannot be told."""
    return _stamp(path) is not None


def read(path: Path, parse: Callable[[object], T]) -> T:
    """What `parse` makes of the YAML file. Raises `InvalidFile`."""
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
    """Put the tree there as YAML, whole or not at all, for this user only. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable_write(path, dump_yaml(tree).encode())


def create(path: Path, tree: object) -> bool:
    """Like `write`, but changes nothing and returns False if something of this name is there. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return durable_create(path, dump_yaml(tree).encode())


def _stamp(path: Path) -> _Stamp | None:
    """Return the state of the file; None only if there is none. Raises `InvalidFile` if that cannot be told."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise InvalidFile(f"{path} cannot be read: it is a link to a file that does not exist") from None
        return None
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror}") from None
    # With the time of the last change of mode or owner: a file may become readable by it.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
