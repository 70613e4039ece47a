"""Files of earlier programs: what they hold is there, and counted, after they have been opened."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from loadbalancer.storage.database import Database
from loadbalancer.storage.migrations import MIGRATIONS, migrate
from loadbalancer.storage.records import RetentionLimits
from loadbalancer.storage.repository import Repository
from loadbalancer.storage.result_table import ROW_BYTES


def test_bytes_of_an_earlier_file_are_counted_by_owner() -> None:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("PRAGMA foreign_keys = ON")
        for number, script in enumerate(MIGRATIONS[:6], 1):
            db.executescript(f"{script} PRAGMA user_version = {number};")
        job = "INSERT INTO jobs (id, owner, state, asked, created, bytes) VALUES (?, ?, 'queued', '{}', 1, ?)"
        db.executemany(job, [("j0", "a", 10), ("j1", "a", 20), ("j2", "b", 5)])
        db.execute("INSERT INTO keys (owner, key, digest, made, job, bytes) VALUES ('a', 'k', x'01', 1, 'j0', 0)")
        db.execute("INSERT INTO keys (owner, key, digest, made, bytes) VALUES ('b', 'k', x'01', 1, 7)")
        result = "INSERT INTO results (id, owner, media_type, made, bytes, job, item) VALUES (?, 'a', 'x', 1, 3, ?, 0)"
        db.executemany(result, [("r0", None), ("r1", "j0")])
        migrate(db)
        repository = Repository(db)
        assert repository.size() == 10 + 20 + 5 + 7
        repository.forget("j0")
        repository.results.add("r2", "c", "image/png", b"xy", 1.0)
        held = db.execute("SELECT * FROM held_bytes ORDER BY kind, owner").fetchall()
        assert held == [
            ("jobs", "a", 20),
            ("jobs", "b", 5),
            ("keys", "b", 7),
            ("results", "a", 3),
            ("results", "c", ROW_BYTES + 2),
        ]


async def test_a_full_file_of_an_earlier_program_is_read(tmp_path: Path) -> None:
    """What a migration adds may exceed the limit of the file: else nothing could be read or deleted any more."""
    file, pages = tmp_path / "jobs.sqlite3", 300
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
        for pragma in ("auto_vacuum = 2", "journal_mode = MEMORY", "synchronous = OFF"):
            db.execute(f"PRAGMA {pragma}")
        for number, script in enumerate(MIGRATIONS[:6], 1):
            db.executescript(f"{script} PRAGMA user_version = {number};")
        db.execute(f"PRAGMA max_page_count = {pages}")
        row = "INSERT INTO keys (owner, key, digest, made, body, bytes) VALUES ('a', ?, x'01', ?, x'', 1)"
        with pytest.raises(sqlite3.OperationalError, match="full"):
            db.executemany(row, ((f"k{number}", number + 0.5) for number in range(100_000)))
        (count,) = db.execute("SELECT count(*) FROM keys").fetchone()
    database = Database(file, max_file_bytes=pages * 4096)
    try:
        assert await database.do(lambda repository: repository.size()) == count
        limits = RetentionLimits(count, 1 << 40, 1 << 40)
        while await database.do(lambda repository: repository.sweep(limits)):
            pass
        assert await database.do(lambda repository: repository.size()) == 0
    finally:
        await database.close()
