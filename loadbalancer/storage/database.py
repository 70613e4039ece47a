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
from loadbalancer.storage.repository import Ledger, migrate

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[Ledger], Result]

#: Pieces of work in one commit.
_TOGETHER = 256
_BUSY_S = 2.0
_SWEEP_S = 5.0
#: Between two lines in the log about a disk that takes nothing: with every request there is a new reason for one.
_COMPLAIN_S = 10.0


class Unwritable(Exception):
    """The disk does not take it: it is full, read-only or broken. `full` tells the first from the others."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


class _Piece(NamedTuple):
    work: Work[Any]
    future: asyncio.Future[Any]


class _Outcome(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


class Journal:
    """One file, written in the order in which `do` is called. All methods are called in the event loop."""

    def __init__(self, file: Path, max_file_bytes: int | None = None) -> None:
        """`max_file_bytes` bounds the file: past it, adding to it is refused as on a full disk."""
        self._file = file
        self._max_file_bytes = max_file_bytes
        self._pieces: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._connection: sqlite3.Connection | None = None
        #: Why the last commit failed, if it did.
        self._trouble = ""
        self._complained = float("-inf")
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Journal {self._file.name}, {self._pieces.qsize()} waiting{self._trouble and ': '}{self._trouble}>"

    async def do(self, work: Work[Result]) -> Result:
        """Do the work in a transaction, and return what it gives once that is on disk.

        It may be done twice where the first attempt is rolled back, so it only touches the ledger. What it raises is
        raised here, and undoes it alone. Raises `Unwritable`.
        """
        future: asyncio.Future[Result] = self._loop.create_future()
        self._pieces.put(_Piece(work, future))
        return await future

    async def close(self) -> None:
        """Commit what waits, and close the file."""
        self._pieces.put(None)
        await asyncio.to_thread(self._thread.join)

    # ---- inside the thread

    def _run(self) -> None:
        while True:
            pieces, closing = self._take()
            outcomes = self._commit(pieces)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(_tell, outcomes)
            if closing:
                self._disconnect()
                return

    def _take(self) -> tuple[list[_Piece], bool]:
        """All that waits, up to a bound; waits for the first. Also whether that was the last."""
        pieces: list[_Piece] = []
        piece = self._pieces.get()
        while piece is not None:
            pieces.append(piece)
            if len(pieces) == _TOGETHER or self._pieces.empty():
                return pieces, False
            piece = self._pieces.get()
        return pieces, True

    def _commit(self, pieces: Sequence[_Piece]) -> list[_Outcome]:
        try:
            outcomes = self._transact(pieces)
        except (sqlite3.Error, OSError) as error:
            if len(pieces) > 1:  # one that does not fit must not take the others with it
                return [outcome for piece in pieces for outcome in self._commit([piece])]
            return [_Outcome(piece.future, None, self._complain(error)) for piece in pieces]
        if pieces:
            self._trouble = ""
        return outcomes

    def _transact(self, pieces: Sequence[_Piece]) -> list[_Outcome]:
        """Raises `sqlite3.Error` and `OSError`; nothing of it is on disk then."""
        if not pieces:
            return []
        db = self._connect()
        try:
            db.execute("BEGIN IMMEDIATE")
            outcomes = [_attempt(piece, db) for piece in pieces]
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

    def _complain(self, error: Exception) -> Unwritable:
        trouble, now = Unwritable(error), time.monotonic()
        if now - self._complained >= _COMPLAIN_S:
            self._complained = now
            log.error("durable jobs: %s cannot be written: %s", self._file, trouble)
        self._trouble = str(trouble)
        if not trouble.full:  # the file may have been replaced, or its disk mounted anew
            self._disconnect()
        return trouble

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


async def sweep_forever(journal: Journal, keep_s: float, max_bytes: int) -> None:
    """Remove again and again what is too old or too much. See `Ledger.sweep`."""
    while True:
        await asyncio.sleep(min(_SWEEP_S, keep_s))
        with contextlib.suppress(Unwritable):
            await journal.do(partial(Ledger.sweep, before=time.time() - keep_s, most=max_bytes))


def _attempt(piece: _Piece, db: sqlite3.Connection) -> _Outcome:
    """Do one piece. Raises `sqlite3.Error`; what else the work raises is its own outcome."""
    db.execute("SAVEPOINT piece")
    try:
        outcome = _Outcome(piece.future, piece.work(Ledger(db)), None)
    except sqlite3.Error:
        raise
    except Exception as error:
        db.execute("ROLLBACK TO piece")
        outcome = _Outcome(piece.future, None, error)
    db.execute("RELEASE piece")
    return outcome


def _tell(outcomes: Sequence[_Outcome]) -> None:
    for future, value, error in outcomes:
        if future.done():  # whoever waited was cancelled
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
