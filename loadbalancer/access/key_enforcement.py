"""Prevents an accidental start without API keys after keys have been in force.

A file in the data directory records that keys were in force. If the key file is missing then, for example because a
disk is not mounted, the server refuses to start. `scripts/keys disable` removes the record and renames the key file.
"""

from __future__ import annotations

import asyncio
import logging
import stat
import time
from collections import Counter
from pathlib import Path

from configs.files import describe_os_error, durable_create
from configs.paths import keys_required_file
from loadbalancer.access.api_keys import KeyRing
from loadbalancer.access.key_files import POLL_INTERVAL_S, ReloadingFile
from loadbalancer.background_tasks import TaskSupervisor

log = logging.getLogger(__name__)

_RETRY_S = 10.0
_TEXT = b"""\
API keys have been in force here. Without its key file, the balancer refuses to start.
To serve without keys on purpose: scripts/keys disable
"""


class KeysRequired(Exception):
    """The key file is missing. The message says how to restore it, and how to serve without keys."""


class EnforcedKeys:
    """The current API keys. It records that keys are in force as soon as there are any.

    From `start` on it checks the file once a second, so that no request waits for a disk.
    """

    def __init__(self, file: ReloadingFile[KeyRing | None], data_dir: Path) -> None:
        """Raises `OSError` if the record cannot be written."""
        self._file = file
        self._data_dir = data_dir
        self._is_recorded = False
        self._retry_at = float("-inf")
        self._tasks = TaskSupervisor()
        #: None while keys are off. Others only read it.
        self.ring = file.current
        if file.current is not None:
            record_keys_in_force(data_dir)
            self._is_recorded = True

    def __repr__(self) -> str:
        return f"<EnforcedKeys {'off' if self.ring is None else len(self.ring.keys)}>"

    @property
    def task_failures(self) -> Counter[str]:
        """Unexpected failures since the start, by name of the background task."""
        return self._tasks.failures

    def start(self) -> None:
        """Check the file from now on. The event loop has to run."""
        self._tasks.run_forever("api_keys", self._refresh_forever)

    async def stop(self) -> None:
        """Stop checking. Idempotent."""
        await self._tasks.stop()

    def refresh(self, now: float) -> None:
        """Check the file. `now` is seconds on a monotonic clock."""
        self.ring = self._file.refresh()
        if self.ring is not None and not self._is_recorded and now >= self._retry_at:
            try:
                record_keys_in_force(self._data_dir)
                self._is_recorded = True
            except OSError as error:
                self._retry_at = now + _RETRY_S
                log.error("cannot record that API keys are in force: %s", describe_os_error(error))

    async def _refresh_forever(self) -> None:
        while True:
            self.refresh(time.monotonic())
            await asyncio.sleep(POLL_INTERVAL_S)


def record_keys_in_force(data_dir: Path) -> None:
    """Create the record unless it exists. Raises `OSError` with the path."""
    path = keys_required_file(data_dir)
    path.parent.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    if not is_recorded(data_dir):
        durable_create(path, _TEXT)


def is_recorded(data_dir: Path) -> bool:
    """Return whether the record exists, of any file type. Raises `OSError` if that is unknown."""
    try:
        keys_required_file(data_dir).lstat()
    except FileNotFoundError:
        return False
    return True


def check_keys_not_required(data_dir: Path, path: Path) -> None:
    """Raise `KeysRequired` if keys have been in force, or if that is unknown. `path` is the missing key file."""
    try:
        required = is_recorded(data_dir)
    except OSError as error:
        raise KeysRequired(f"{describe_os_error(error)}: it is unknown whether API keys were in force") from None
    if required:
        raise KeysRequired(
            f"API keys have been in force, but {path} does not exist. Restore the file; or create new keys with "
            f"`scripts/keys --data-dir {data_dir} add NAME`; or serve without keys after "
            f"`scripts/keys --data-dir {data_dir} disable`"
        )


def warn_of_mode(path: Path) -> None:
    """Log a warning if other users can change or read the key file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        log.warning("other users can write to %s and add their own keys; chmod 600 %s", path, path)
    elif mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("other users can read %s, which holds the names and hashes of keys; chmod 600 %s", path, path)
