"""Files of earlier programs: what they hold is there, and counted, after they have been opened."""

from __future__ import annotations

import contextlib
import sqlite3

from loadbalancer.storage.migrations import MIGRATIONS, migrate
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
