"""The tables of durable jobs and of responses stored for their idempotency keys.

Every method is one step of a transaction that `Database` opens and commits in its own thread. The end of a job is
written once: `finish` returns None for a second one. Times are Unix seconds.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from loadbalancer.scheduling.task import Checkpoint
from loadbalancer.storage.records import (
    UNREADABLE_SPEC,
    Failure,
    IdempotencyKey,
    IdempotencyKeyReused,
    JobRecord,
    JobSpec,
    JobState,
    StoredCheckpoint,
    StoredImage,
    StoredResponse,
)
from wire.errors import ErrorDetail

#: `PRAGMA user_version` counts those applied to a file. New ones are appended; old ones never change.
MIGRATIONS = (
    """
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, state TEXT NOT NULL,
        asked BLOB NOT NULL, failure BLOB, created REAL NOT NULL, started REAL, ended REAL, bytes INTEGER NOT NULL);
    CREATE INDEX jobs_of_owner ON jobs (owner, seq);
    CREATE INDEX jobs_unfinished ON jobs (seq) WHERE ended IS NULL;
    CREATE INDEX jobs_ended ON jobs (ended, bytes);
    CREATE TABLE sources (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, n INTEGER NOT NULL, pixels BLOB NOT NULL,
        PRIMARY KEY (job, n));
    CREATE TABLE checkpoints (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, item INTEGER NOT NULL, step INTEGER NOT NULL,
        steps INTEGER NOT NULL, frames BLOB NOT NULL, PRIMARY KEY (job, item));
    CREATE TABLE images (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, item INTEGER NOT NULL, image BLOB NOT NULL,
        waited_s REAL NOT NULL, ran_s REAL NOT NULL, flagged INTEGER NOT NULL, PRIMARY KEY (job, item));
    CREATE TABLE keys (
        owner TEXT NOT NULL, key TEXT NOT NULL, digest BLOB NOT NULL, made REAL NOT NULL,
        job TEXT REFERENCES jobs (id) ON DELETE CASCADE, status INTEGER, media_type TEXT, body BLOB,
        bytes INTEGER NOT NULL, PRIMARY KEY (owner, key));
    CREATE INDEX keys_by_age ON keys (made, bytes);
    CREATE INDEX keys_of_job ON keys (job);
    CREATE TABLE deliveries (
        job TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE, attempts INTEGER NOT NULL, due REAL,
        delivered REAL);
    CREATE INDEX deliveries_due ON deliveries (due) WHERE due IS NOT NULL;
    """,
)

_COLUMNS = "seq, id, asked, state, created, started, ended, failure"
_json = msgspec.json.Encoder()
_specs = msgspec.json.Decoder(JobSpec)
_failures = msgspec.json.Decoder(Failure)
_frames = msgspec.msgpack.Decoder(list[bytes])
_UNREADABLE = Failure(
    500, ErrorDetail("The stored data of this job cannot be read.", "server_error", None, "job_unreadable")
)
#: Estimated size of a row without its blobs.
_ROW_BYTES = 512
#: Limit of pages that one sweep returns to the file system: a long sweep would delay writes.
_TRIM_PAGES = 1024


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the missing migrations. Raises `sqlite3.DatabaseError` for a file of a newer program."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise sqlite3.DatabaseError(f"its version is {version}; this program knows {len(MIGRATIONS)}")
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")


class Repository:
    """The tables, through one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    # ---- jobs

    def add(
        self, job: str, order: JobSpec, sources: Sequence[bytes], key: IdempotencyKey | None, now: float
    ) -> JobRecord:
        """Insert the job, or return the one stored with its idempotency key. Raises `IdempotencyKeyReused`."""
        existing = (self.job_of(key) if key is not None else None) or self.get(job)
        if existing is not None:  # under this key, or a repeated transaction
            return existing
        asked = _json.encode(order)
        size = len(asked) + sum(map(len, sources)) + _ROW_BYTES
        self._db.execute(
            "INSERT INTO jobs (id, owner, state, asked, created, bytes) VALUES (?, ?, ?, ?, ?, ?)",
            (job, order.owner, JobState.QUEUED, asked, now, size),
        )
        self._db.executemany("INSERT INTO sources VALUES (?, ?, ?)", [(job, n, own) for n, own in enumerate(sources)])
        if key is not None:
            self._db.execute(
                "INSERT INTO keys (owner, key, digest, made, job, bytes) VALUES (?, ?, ?, ?, ?, 0)", (*key, now, job)
            )
        return self._require(job)

    def job_of(self, key: IdempotencyKey) -> JobRecord | None:
        """Return the job stored with the key, if any. Raises `IdempotencyKeyReused`."""
        known = self._stored_key(key)
        return None if known is None or known[0] is None else self._require(known[0])

    def get(self, job: str, owner: str | None = None) -> JobRecord | None:
        """Return the job; None if it does not exist or has another owner."""
        row = self._db.execute(f"SELECT {_COLUMNS}, owner FROM jobs WHERE id = ?", (job,)).fetchone()  # noqa: S608
        return None if row is None or owner not in (None, row[-1]) else _record(row[:-1])

    def page(self, owner: str, limit: int, after: str | None, state: JobState | None) -> list[JobRecord]:
        """Return at most `limit` jobs of the owner that are older than `after`, newest first."""
        before = None if after is None else self.get(after, owner)
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE owner = ? AND seq < ? AND state = ifnull(?, state)"  # noqa: S608
            " ORDER BY seq DESC LIMIT ?",
            (owner, 2**62 if before is None else before.seq, state, limit),
        )
        return [_record(row) for row in rows]

    def unfinished(self) -> list[JobRecord]:
        """Return the unfinished jobs, oldest first."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE ended IS NULL ORDER BY seq")  # noqa: S608
        return [_record(row) for row in rows]

    def fail_unreadable(self, now: float) -> list[str]:
        """Fail the unfinished jobs whose specs cannot be read, and return their ids."""
        broken = [record.id for record in self.unfinished() if not record.readable]
        for job in broken:
            self.finish(job, JobState.FAILED, _UNREADABLE, now)
        return broken

    def sources(self, job: str) -> list[bytes]:
        """Return the pixels of the job's source images."""
        return [row[0] for row in self._db.execute("SELECT pixels FROM sources WHERE job = ? ORDER BY n", (job,))]

    def source_bytes(self) -> dict[str, int]:
        """Return the bytes of source images by job."""
        return dict(self._db.execute("SELECT job, sum(length(pixels)) FROM sources GROUP BY job").fetchall())

    def images(self, job: str) -> list[StoredImage]:
        """Return the finished images in order."""
        rows = self._db.execute(
            "SELECT item, image, waited_s, ran_s, flagged FROM images WHERE job = ? ORDER BY item", (job,)
        )
        return [StoredImage(item, image, waited, ran, bool(flagged)) for item, image, waited, ran, flagged in rows]

    def checkpoints(self, job: str) -> dict[int, Checkpoint]:
        """Return the readable checkpoints by index in the job."""
        saved: dict[int, Checkpoint] = {}
        for item, step, steps, frames in self._db.execute(
            "SELECT item, step, steps, frames FROM checkpoints WHERE job = ?", (job,)
        ):
            with contextlib.suppress(msgspec.MsgspecError):  # that image starts again
                saved[item] = Checkpoint(step, steps, _frames.decode(frames))
        return saved

    def started(self, job: str, now: float) -> None:
        """Record the first step of the job."""
        self._db.execute(
            "UPDATE jobs SET state = ?, started = ifnull(started, ?) WHERE id = ? AND ended IS NULL",
            (JobState.RUNNING, now, job),
        )

    def save(self, saves: Iterable[StoredCheckpoint]) -> None:
        """Store the newest checkpoint of each image, unless its job has ended."""
        self._db.executemany(
            "INSERT INTO checkpoints SELECT id, ?, ?, ?, ? FROM jobs WHERE id = ? AND ended IS NULL"
            " ON CONFLICT DO UPDATE SET step = excluded.step, steps = excluded.steps, frames = excluded.frames"
            " WHERE excluded.step > step",
            [(s.item, s.state.step, s.state.steps, msgspec.msgpack.encode(s.state.frames), s.job) for s in saves],
        )

    def keep(self, job: str, image: StoredImage) -> None:
        """Store a finished image, unless its job has ended or the index has an image."""
        added = self._db.execute(
            "INSERT OR IGNORE INTO images SELECT id, ?, ?, ?, ?, ? FROM jobs WHERE id = ? AND ended IS NULL",
            (*image, job),
        )
        if added.rowcount:
            self._db.execute("UPDATE jobs SET bytes = bytes + ? WHERE id = ?", (len(image.image) + _ROW_BYTES, job))
        self._db.execute("DELETE FROM checkpoints WHERE job = ? AND item = ?", (job, image.item))

    def finish(self, job: str, state: JobState, failure: Failure | None, now: float) -> JobRecord | None:
        """End the job and queue its webhook. Returns None if it has ended before or was deleted."""
        failure_json = None if failure is None else _json.encode(failure)
        ended = self._db.execute(
            "UPDATE jobs SET state = ?, failure = ?, ended = ? WHERE id = ? AND ended IS NULL",
            (state, failure_json, now, job),
        )
        if not ended.rowcount:
            return None
        freed = self._db.execute("SELECT ifnull(sum(length(pixels)), 0) FROM sources WHERE job = ?", (job,)).fetchone()
        self._db.execute("UPDATE jobs SET bytes = bytes - ? WHERE id = ?", (*freed, job))
        for table in ("sources", "checkpoints"):
            self._db.execute(f"DELETE FROM {table} WHERE job = ?", (job,))  # noqa: S608
        record = self._require(job)
        if record.order.hook is not None:
            self._db.execute("INSERT INTO deliveries VALUES (?, 0, ?, NULL)", (job, now))
        return record

    def forget(self, job: str) -> None:
        """Delete the job and all its rows."""
        self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))

    # ---- size limit

    def sweep(self, before: float, max_bytes: int) -> int:
        """Delete results older than `before`, then the oldest until `max_bytes` remain. Returns their number."""
        removed = self._db.execute("DELETE FROM jobs WHERE ended < ?", (before,)).rowcount
        removed += self._db.execute("DELETE FROM keys WHERE made < ? AND job IS NULL", (before,)).rowcount
        excess = self.size() - max_bytes
        for _, size, job, owner, key in self._by_age() if excess > 0 else ():
            if job is not None:
                self.forget(job)
            else:
                self._db.execute("DELETE FROM keys WHERE owner = ? AND key = ?", (owner, key))
            removed, excess = removed + 1, excess - size
            if excess <= 0:
                break
        self._db.execute(f"PRAGMA incremental_vacuum({_TRIM_PAGES})").fetchall()
        return removed

    def _by_age(self) -> list[tuple[float, int, str | None, str | None, str | None]]:
        """Return time, bytes and id of all results, oldest first; unfinished jobs are excluded."""
        return self._db.execute(
            "SELECT ended AS at, bytes, id, NULL, NULL FROM jobs WHERE ended IS NOT NULL"
            " UNION ALL SELECT made, bytes, NULL, owner, key FROM keys WHERE job IS NULL ORDER BY at"
        ).fetchall()

    def size(self) -> int:
        """Return the bytes of jobs and stored responses."""
        (size,) = self._db.execute(
            "SELECT (SELECT ifnull(sum(bytes), 0) FROM jobs) + (SELECT ifnull(sum(bytes), 0) FROM keys)"
        ).fetchone()
        return int(size)

    # ---- idempotency keys of requests that are not jobs

    def recall(self, key: IdempotencyKey) -> StoredResponse | None:
        """Return the response stored for the key. Raises `IdempotencyKeyReused`."""
        known = self._stored_key(key)
        return StoredResponse(*known[1:]) if known is not None and known[0] is None else None

    def remember(self, key: IdempotencyKey, answer: StoredResponse, now: float) -> None:
        """Store the response, unless the key has one."""
        self._db.execute(
            "INSERT OR IGNORE INTO keys (owner, key, digest, made, status, media_type, body, bytes)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, now, *answer, len(answer.body) + _ROW_BYTES),
        )

    def _stored_key(self, key: IdempotencyKey) -> tuple[str | None, int, str, bytes] | None:
        row = self._db.execute(
            "SELECT digest, job, status, media_type, body FROM keys WHERE owner = ? AND key = ?", (key.owner, key.key)
        ).fetchone()
        if row is not None and row[0] != key.digest:
            raise IdempotencyKeyReused
        return None if row is None else row[1:]

    # ---- webhooks

    def due(self, now: float, limit: int) -> list[tuple[JobRecord, int]]:
        """Return ended jobs whose webhook is due, with the attempts made so far."""
        rows = self._db.execute(
            "SELECT job, attempts FROM deliveries WHERE due <= ? ORDER BY due LIMIT ?", (now, limit)
        ).fetchall()
        return [(self._require(job), attempts) for job, attempts in rows]

    def next_due(self) -> float | None:
        """Return the time of the next delivery."""
        (due,) = self._db.execute("SELECT min(due) FROM deliveries WHERE due IS NOT NULL").fetchone()
        return None if due is None else float(due)

    def attempted(self, job: str, due: float | None, delivered: float | None) -> None:
        """Record an attempt: it is `delivered`, or `due` again, or has failed for good (both None)."""
        self._db.execute(
            "UPDATE deliveries SET attempts = attempts + 1, due = ?, delivered = ? WHERE job = ?", (due, delivered, job)
        )

    def _require(self, job: str) -> JobRecord:
        record = self.get(job)
        assert record is not None
        return record


def _record(row: tuple[int, str, bytes, str, float, float | None, float | None, bytes | None]) -> JobRecord:
    seq, job, asked, state, created, started, ended, failure = row
    failure_json, order = None if failure is None else _UNREADABLE, UNREADABLE_SPEC
    with contextlib.suppress(msgspec.MsgspecError):
        order = _specs.decode(asked)
    if failure is not None:
        with contextlib.suppress(msgspec.MsgspecError):
            failure_json = _failures.decode(failure)
    return JobRecord(seq, job, order, JobState(state), created, started, ended, failure_json)
