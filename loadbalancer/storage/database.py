"""The SQLite file of durable jobs and the one thread that accesses it.

Queued work is committed together (group commit), and an awaited `do` returns after the commit. With `synchronous=FULL`
a commit survives a power cut; group commit makes that affordable. After an error the next work item retries the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import queue
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from configs.data_dir import DataDirCheck, DataDirRemoved, is_same_file
from configs.files import describe_os_error, open_for_append
from configs.paths import private_dir
from loadbalancer.storage.migrations import migrate
from loadbalancer.storage.records import RetentionLimits
from loadbalancer.storage.repository import SWEEP_ROWS, Repository
from loadbalancer.storage.retention_clock import RetentionClock

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[Repository], Result]

_MAX_COMMIT_BATCH = 256
_BUSY_S = 2.0
_SWEEP_S = 5.0
#: Least interval between two log lines about an unavailable disk.
_LOG_INTERVAL_S = 10.0
#: The value of `auto_vacuum` for which free pages are cut off on request.
_INCREMENTAL = 2
#: No space, a quota, the largest size of a file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageUnavailable(Exception):
    """The disk is full (`full`), read-only or broken, or the file is no sound database (`damaged`).

    `removed`: the data directory is gone.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(describe_os_error(error) if isinstance(error, OSError) else str(error) or repr(error))
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        # Of a quota or a limit of the size of files, SQLite says only that it could not write.
        is_refused = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_WRITE
        self.full = code == sqlite3.SQLITE_FULL or is_refused or getattr(error, "errno", 0) in _FULL
        self.removed = isinstance(error, DataDirRemoved)
        self.damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _WorkItem(NamedTuple):
    work: Work[Any]
    future: asyncio.Future[Any]


class _Outcome(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


class Database:
    """One file, written in the order in which `do` is called. All methods are called in the event loop."""

    def __init__(
        self,
        file: Path,
        max_file_bytes: int | None = None,
        data_dir: DataDirCheck | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`max_file_bytes` limits the file; beyond it writes fail as on a full disk.

        Without its `data_dir` nothing is written: SQLite would go on with a file that no longer has a name.
        `wall` returns Unix time.
        """
        self.wall = wall
        self._retention_clock = RetentionClock(wall(), time.monotonic())
        self._file = file
        self._max_file_bytes = max_file_bytes
        self._data_dir = data_dir
        self._queue: queue.SimpleQueue[_WorkItem | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="database", daemon=True)
        self._connection: sqlite3.Connection | None = None
        #: Status of the connection's file, which it holds open.
        self._opened: os.stat_result | None = None
        self._is_exclusive = False
        #: Bytes of the pages in use after the last commit.
        self.used_bytes = 0
        #: Error of the last commit; empty after a success.
        self._last_error = ""
        self._last_logged = float("-inf")
        #: Whether deleted content is overwritten.
        self._overwrites = True
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def __repr__(self) -> str:
        return (
            f"<Database {self._file.name}, {self._queue.qsize()} waiting{self._last_error and ': '}{self._last_error}>"
        )

    def retention_time(self) -> float:
        """Return the Unix time by which what is stored grows old. Call it regularly, so that jumps are noticed."""
        return self._retention_clock.now(self.wall(), time.monotonic())

    async def do(self, work: Work[Result]) -> Result:
        """Do the work in a transaction and return its result after the commit.

        The work may run twice if the first attempt is rolled back, so it only uses the repository. An exception from
        it is raised here and rolls back only this work. Raises `StorageUnavailable`.
        """
        future: asyncio.Future[Result] = self._loop.create_future()
        self._queue.put(_WorkItem(work, future))
        return await future

    async def close(self) -> None:
        """Commit the queued work and close the file."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # ---- inside the thread

    def _run(self) -> None:
        while True:
            items, closing = self._next_batch()
            outcomes = self._commit(items)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(_complete, outcomes)
            if closing:
                self._disconnect()
                return

    def _next_batch(self) -> tuple[list[_WorkItem], bool]:
        """Wait for work; return up to `_MAX_COMMIT_BATCH` items, and True if the database is closing."""
        items: list[_WorkItem] = []
        item = self._queue.get()
        while item is not None:
            items.append(item)
            if len(items) == _MAX_COMMIT_BATCH or self._queue.empty():
                return items, False
            item = self._queue.get()
        return items, True

    def _commit(self, items: Sequence[_WorkItem]) -> list[_Outcome]:
        try:
            outcomes = self._transact(items)
        except Exception as error:  # of SQLite, of the disk, or a `MemoryError`: the thread goes on in any case
            if len(items) > 1:  # one item that does not fit must not fail the others
                return [outcome for item in items for outcome in self._commit([item])]
            return [_Outcome(item.future, None, self._on_error(error)) for item in items]
        if items:
            self._last_error = ""
            if not self._overwrites:
                self._set_secure_delete(True)
            if self._is_exclusive:  # other programs may read the file in between, and there may be room again
                self._disconnect()
        return outcomes

    def _transact(self, items: Sequence[_WorkItem]) -> list[_Outcome]:
        """Raises any exception but those of the work; the transaction is then rolled back."""
        if not items:
            return []
        if self._data_dir is not None:
            self._data_dir.require()
        if self._opened is not None and not is_same_file(self._file, self._opened):
            log.warning("durable jobs: %s was removed or replaced; it is opened again", self._file)
            self._disconnect()
        db = self._connect()
        try:
            db.execute("BEGIN IMMEDIATE")
            outcomes = [_attempt(item, db) for item in items]
            db.execute("COMMIT")
            self.used_bytes = _used_bytes(db)
        except Exception:
            if db.in_transaction:  # else SQLite itself has rolled back
                db.execute("ROLLBACK")
            raise
        return outcomes

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            folder = private_dir(self._file.parent.resolve())  # may be a link of this user to a larger disk
            _make_private(folder / self._file.name)
            try:
                self._connection = self._open("NORMAL")
            except sqlite3.OperationalError as error:
                if not getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR_SHM"):
                    raise
                # A full disk has no room for the index of the log, 32 KiB, which an exclusive lock keeps in memory.
                self._connection, self._is_exclusive = self._open("EXCLUSIVE"), True
            self._opened = self._file.stat()
        return self._connection

    def _open(self, locking: Literal["NORMAL", "EXCLUSIVE"]) -> sqlite3.Connection:
        db = sqlite3.connect(self._file, timeout=_BUSY_S, isolation_level=None)
        try:
            db.execute(f"PRAGMA locking_mode = {locking}")
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        if db.execute("PRAGMA auto_vacuum").fetchone() != (_INCREMENTAL,):  # else setting it writes, and fails if full
            db.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")  # counts for a new file, before its first table
        # With secure_delete, prompts and images that are deleted are not left behind in free pages.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            db.execute(f"PRAGMA {pragma}")
        migrate(db)  # before the limit: without it, what is in a full file could neither be read nor deleted
        if self._max_file_bytes is not None:
            (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
            db.execute(f"PRAGMA max_page_count = {self._max_file_bytes // page_bytes}")

    def _on_error(self, error: Exception) -> StorageUnavailable:
        unavailable, now = StorageUnavailable(error), time.monotonic()
        if now - self._last_logged >= _LOG_INTERVAL_S:
            self._last_logged = now
            log.error("durable jobs: %s cannot be used: %s", self._file, unavailable)
            if unavailable.damaged:
                log.error(
                    "%s is damaged: move it, and the files -wal and -shm beside it, out of their folder. The server "
                    "then begins a new one by itself. `sqlite3 %s .recover` may restore jobs from the old one",
                    self._file,
                    self._file.name,
                )
        was_refused, self._last_error = bool(self._last_error), str(unavailable)
        if unavailable.full:  # overwriting what is deleted takes room too
            self._set_secure_delete(False)
            if not was_refused:
                self._empty_wal()
        else:  # the file may have been replaced, or its disk mounted again
            self._disconnect()
        return unavailable

    def _set_secure_delete(self, is_on: bool) -> None:
        self._overwrites = is_on
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute(f"PRAGMA secure_delete = {'ON' if is_on else 'OFF'}").fetchall()

    def _empty_wal(self) -> None:
        """Move what the log holds to the file, and free the room of the log, as far as there is room for it."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = self._opened = None
            self._is_exclusive = False


def _used_bytes(db: sqlite3.Connection) -> int:
    """Return the bytes of the pages that hold something."""
    page_bytes, pages, free = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
    )
    return int(page_bytes * (pages - free))


def _make_private(file: Path) -> None:
    """Create the file, or tighten its mode, before SQLite derives those of its other files from it."""
    with open_for_append(file) as opened:
        if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) != 0o600:
            os.fchmod(opened.fileno(), 0o600)


async def sweep_forever(database: Database, every_s: float, limits: Callable[[float], RetentionLimits]) -> None:
    """Call `Repository.sweep` periodically, in small steps, so that other work goes on between them.

    `limits` returns the limits at a time in Unix seconds.
    """
    while True:
        await asyncio.sleep(min(_SWEEP_S, every_s))
        removed, now = SWEEP_ROWS, database.retention_time()
        with contextlib.suppress(StorageUnavailable):
            await database.do(partial(Repository.bound_times, now=database.wall()))
            while removed >= SWEEP_ROWS:
                removed = await database.do(partial(Repository.sweep, limits=limits(now)))


def _attempt(item: _WorkItem, db: sqlite3.Connection) -> _Outcome:
    """Do one item. Raises `sqlite3.Error`; any other exception becomes its outcome."""
    db.execute("SAVEPOINT item")
    try:
        outcome = _Outcome(item.future, item.work(Repository(db)), None)
    except sqlite3.Error:
        raise
    except Exception as error:
        db.execute("ROLLBACK TO item")
        outcome = _Outcome(item.future, None, error)
    db.execute("RELEASE item")
    return outcome


def _complete(outcomes: Sequence[_Outcome]) -> None:
    for future, value, error in outcomes:
        if future.done():  # whoever waited was cancelled
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
