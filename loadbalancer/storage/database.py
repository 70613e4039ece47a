"""The disk behind durable jobs: an SQLite file with a thread of its own, which alone touches it.

What waits to be written is committed together (group commit), and an awaited `do` returns after that commit. With
`synchronous=FULL` a commit is on the disk itself, so that what was acknowledged outlives a power cut too; committing
many at once is what makes that affordable. A file that cannot be written is tried again with the next piece of work:
nothing here needs a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from configs.paths import private_dir
from loadbalancer.storage.repository import Repository, migrate

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[Repository], Result]

#: Pieces of work in one commit.
_MAX_COMMIT_BATCH = 256
_BUSY_S = 2.0
_SWEEP_S = 5.0
#: Between two lines in the log about a disk that takes nothing: with every request there is a new reason for one.
_LOG_INTERVAL_S = 10.0


class StorageUnavailable(Exception):
    """The disk does not take it: it is full, read-only or broken. `full` tells the first from the others."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


class _WorkItem(NamedTuple):
    work: Work[Any]
    future: asyncio.Future[Any]


class _Outcome(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


class Database:
    """One file, written in the order in which `do` is called. All methods are called in the event loop."""

    def __init__(self, file: Path, max_file_bytes: int | None = None) -> None:
        """`max_file_bytes` bounds the file: past it, adding to it is refused as on a full disk."""
        self._file = file
        self._max_file_bytes = max_file_bytes
        self._queue: queue.SimpleQueue[_WorkItem | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._connection: sqlite3.Connection | None = None
        #: Why the last commit failed, if it did.
        self._last_error = ""
        self._last_logged = float("-inf")
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def __repr__(self) -> str:
        return (
            f"<Database {self._file.name}, {self._queue.qsize()} waiting{self._last_error and ': '}{self._last_error}>"
        )

    async def do(self, work: Work[Result]) -> Result:
        """Do the work in a transaction, and return what it gives once that is on disk.

        It may be done twice where the first attempt is rolled back, so it only touches the ledger. What it raises is
        raised here, and undoes it alone. Raises `StorageUnavailable`.
        """
        future: asyncio.Future[Result] = self._loop.create_future()
        self._queue.put(_WorkItem(work, future))
        return await future

    async def close(self) -> None:
        """Commit what waits, and close the file."""
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
        """All that waits, up to a bound; waits for the first. Also whether that was the last."""
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
        except (sqlite3.Error, OSError) as error:
            if len(items) > 1:  # one that does not fit must not take the others with it
                return [outcome for item in items for outcome in self._commit([item])]
            return [_Outcome(item.future, None, self._on_error(error)) for item in items]
        if items:
            self._last_error = ""
        return outcomes

    def _transact(self, items: Sequence[_WorkItem]) -> list[_Outcome]:
        """Raises `sqlite3.Error` and `OSError`; nothing of it is on disk then."""
        if not items:
            return []
        db = self._connect()
        try:
            db.execute("BEGIN IMMEDIATE")
            outcomes = [_attempt(item, db) for item in items]
            db.execute("COMMIT")
        except sqlite3.Error:
            if db.in_transaction:  # else SQLite itself has rolled back
                db.execute("ROLLBACK")
            raise
        return outcomes

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            private_dir(self._file.parent)
            db = sqlite3.connect(self._file, timeout=_BUSY_S, isolation_level=None)
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
            self._connection = db
        return self._connection

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts for a new file, before its first table
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            db.execute(f"PRAGMA {pragma}")
        if self._max_file_bytes is not None:
            (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
            db.execute(f"PRAGMA max_page_count = {self._max_file_bytes // page_bytes}")
        migrate(db)

    def _on_error(self, error: Exception) -> StorageUnavailable:
        unavailable, now = StorageUnavailable(error), time.monotonic()
        if now - self._last_logged >= _LOG_INTERVAL_S:
            self._last_logged = now
            log.error("durable jobs: %s cannot be written: %s", self._file, unavailable)
        self._last_error = str(unavailable)
        if not unavailable.full:  # the file may have been replaced, or its disk mounted anew
            self._disconnect()
        return unavailable

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


async def sweep_forever(database: Database, keep_s: float, max_bytes: int) -> None:
    """Remove again and again what is too old or too much. See `Repository.sweep`."""
    while True:
        await asyncio.sleep(min(_SWEEP_S, keep_s))
        with contextlib.suppress(StorageUnavailable):
            await database.do(partial(Repository.sweep, before=time.time() - keep_s, most=max_bytes))


def _attempt(item: _WorkItem, db: sqlite3.Connection) -> _Outcome:
    """Do one piece. Raises `sqlite3.Error`; what else the work raises is its own outcome."""
    db.execute("SAVEPOINT piece")
    try:
        outcome = _Outcome(item.future, item.work(Repository(db)), None)
    except sqlite3.Error:
        raise
    except Exception as error:
        db.execute("ROLLBACK TO piece")
        outcome = _Outcome(item.future, None, error)
    db.execute("RELEASE piece")
    return outcome


def _complete(outcomes: Sequence[_Outcome]) -> None:
    for future, value, error in outcomes:
        if future.done():  # whoever waited was cancelled
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
