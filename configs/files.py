"""Atomic writes of small files, and reads that neither block nor follow surprises."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

#: Far more than any file of keys or state holds.
MAX_SMALL_FILE_BYTES = 64 << 20


def atomic_write(path: Path, data: bytes) -> None:
    """Replace the file: a reader finds the old or the new content, also after a crash. Raises `OSError` with `path`."""
    with _draft(path, data) as draft:
        draft.replace(path)


def durable_write(path: Path, data: bytes) -> None:
    """Like `atomic_write`; after the return, a power cut does not undo it. Raises `OSError` with the path."""
    with _draft(path, data) as draft:
        draft.replace(path)
        sync_folder(path.parent)


def durable_create(path: Path, data: bytes) -> bool:
    """Create the file as a whole, durably. Return False, with no change, if something of this name is there.

    Of several processes that call it at once, exactly one creates the file. Raises `OSError` with the path.
    """
    with _draft(path, data) as draft:
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return False
        sync_folder(path.parent)
    return True


def read_regular_file(path: Path, max_bytes: int = MAX_SMALL_FILE_BYTES) -> bytes:
    """Return the content. Raises `OSError` with the path, also for a pipe, a device, a folder or a larger file."""
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    with _naming(path), open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "It is not a regular file")
        if status.st_size <= max_bytes and len(data := file.read(max_bytes + 1)) <= max_bytes:  # it may grow
            return data
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def open_for_append(path: Path) -> BinaryIO:
    """Open a file for appending; a new one is for this user only. Raises `OSError`."""
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def open_without_waiting(name: str, flags: int) -> int:
    """Open a file for `open(..., opener=...)`. A pipe without a reader is an error. Raises `OSError`."""
    handle = os.open(name, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(handle, True)
    return handle


def describe_os_error(error: OSError) -> str:
    """Return the path, if it is known, and the reason: `data/keys.yaml: No space left on device`."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes) else reason


def sync_folder(folder: Path) -> None:
    """Put the names in the folder on the disk. Raises `OSError`."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _draft(path: Path, data: bytes) -> Iterator[Path]:
    """Write the data to a new private file beside the path, which is removed at the end unless it was renamed."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with _naming(path):
        # O_EXCL: whatever another user has put there is neither written to nor followed.
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o600)  # whatever the umask is
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield draft
        finally:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make every `OSError` name the path: those of `write` and `fsync` have no file name, others that of a draft."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
