"""Key files: reloaded when they change, and replaced atomically."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from configs.files import atomic_write
from configs.yaml_file import InvalidYaml, dump_yaml, read_yaml_file

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Least seconds between two looks at a file.
POLL_INTERVAL_S = 1.0
#: Maximum size of a file: about 40,000 keys.
_MAX_BYTES = 8 << 20
#: What tells one state of a file from the next.
_Stamp = tuple[int, int, int]


class InvalidFile(ValueError):
    """The file is invalid. The text names the file and the problem, never its content."""


class ReloadingFile(Generic[T]):
    """The content of a YAML file as of now, or of a second ago.

    A change that cannot be used keeps what was there before and is told in the log: a slip of the editor must not
    lock everyone out. A file that vanishes keeps it too: deleting it must not let everyone in.
    """

    def __init__(self, path: Path, parse: Callable[[object], T], absent: T) -> None:
        """Reads the file; `absent` stands for one that is not there yet. Raises `InvalidFile`."""
        self.path = path
        self._parse = parse
        self._last_poll = -POLL_INTERVAL_S
        self._stamp = _stamp(path)
        self._content = absent if self._stamp is None else read(path, parse)

    def get(self, now: float) -> T:
        """What the file holds. `now` is seconds on a clock that never goes back."""
        if now - self._last_poll < POLL_INTERVAL_S:
            return self._content
        self._last_poll = now
        stamp = _stamp(self.path)
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
            log.error("%s; what it said before stays in force", error)
        return self._content


def read(path: Path, parse: Callable[[object], T]) -> T:
    """What `parse` makes of the YAML file. Raises `InvalidFile`."""
    try:
        return parse(read_yaml_file(path, _MAX_BYTES).value)
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
    atomic_write(path, dump_yaml(tree).encode())


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
