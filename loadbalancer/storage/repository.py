"""What the disk knows: the tables of durable jobs and of answers that are kept for their idempotency keys.

Every method is one step of a transaction that `database` opens and commits, in its own thread. Rule: an end is written
once. `finish` says whether it was the one, so that a second answer to a job is dropped wherever it comes from.
Times are Unix seconds.
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

#: By version: `PRAGMA user_version` is how many of them a file has had. New ones are appended, old ones never change.
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
    500, ErrorDetail("What was written of this job cannot be read any more.", "server_error", None, "job_unreadable")
)
#: What a row takes beside its blobs, so that many small ones count too.
_ROW_BYTES = 512
#: Pages given back to the file system by one sweep: a long one would hold up what waits to be written.
_TRIM_PAGES = 1024


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to the newest version. Raises `sqlite3.DatabaseError` for a file that a newer program wrote."""
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
        """Write the job, or give the one that its idempotency key stands for. Raises `IdempotencyKeyReused`."""
        there = (self.job_of(key) if key is not None else None) or self.get(job)
        if there is not None:  # under this key, or the same attempt whose commit was in doubt
            return there
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
        """The job that the key stands for, if it came with one. Raises `IdempotencyKeyReused`."""
        known = self._stored_key(key)
        return None if known is None or known[0] is None else self._require(known[0])

    def get(self, job: str, owner: str | None = None) -> JobRecord | None:
        """The job; None where there is none, or not of this owner."""
        row = self._db.execute(f"SELECT {_COLUMNS}, owner FROM jobs WHERE id = ?", (job,)).fetchone()  # noqa: S608
        return None if row is None or owner not in (None, row[-1]) else _record(row[:-1])

    def page(self, owner: str, limit: int, after: str | None, state: JobState | None) -> list[JobRecord]:
        """At most `limit` jobs of the owner, the newest first, that are older than `after`."""
        before = None if after is None else self.get(after, owner)
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE owner = ? AND seq < ? AND state = ifnull(?, state)"  # noqa: S608
            " ORDER BY seq DESC LIMIT ?",
            (owner, 2**62 if before is None else before.seq, state, limit),
        )
        return [_record(row) for row in rows]

    def unfinished(self) -> list[JobRecord]:
        """What is still to be done, the oldest first."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE ended IS NULL ORDER BY seq")  # noqa: S608
        return [_record(row) for row in rows]

    def give_up(self, now: float) -> list[str]:
        """End the unfinished jobs whose orders cannot be read any more: they must not hold up the others."""
        broken = [record.id for record in self.unfinished() if not record.readable]
        for job in broken:
            self.finish(job, JobState.FAILED, _UNREADABLE, now)
        return broken

    def sources(self, job: str) -> list[bytes]:
        """Pixels of the job's source pictures."""
        return [row[0] for row in self._db.execute("SELECT pixels FROM sources WHERE job = ? ORDER BY n", (job,))]

    def source_bytes(self) -> dict[str, int]:
        """What the source pictures of jobs take, for those that have any."""
        return dict(self._db.execute("SELECT job, sum(length(pixels)) FROM sources GROUP BY job").fetchall())

    def images(self, job: str) -> list[StoredImage]:
        """Its finished images in order."""
        rows = self._db.execute(
            "SELECT item, image, waited_s, ran_s, flagged FROM images WHERE job = ? ORDER BY item", (job,)
        )
        return [StoredImage(item, image, waited, ran, bool(flagged)) for item, image, waited, ran, flagged in rows]

    def checkpoints(self, job: str) -> dict[int, Checkpoint]:
        """How far its images had come, by their place in the job; without what cannot be read any more."""
        saved: dict[int, Checkpoint] = {}
        for item, step, steps, frames in self._db.execute(
            "SELECT item, step, steps, frames FROM checkpoints WHERE job = ?", (job,)
        ):
            with contextlib.suppress(msgspec.MsgspecError):  # that image starts again
                saved[item] = Checkpoint(step, steps, _frames.decode(frames))
        return saved

    def started(self, job: str, now: float) -> None:
        """Its first step was taken."""
        self._db.execute(
            "UPDATE jobs SET state = ?, started = ifnull(started, ?) WHERE id = ? AND ended IS NULL",
            (JobState.RUNNING, now, job),
        )

    def save(self, saves: Iterable[StoredCheckpoint]) -> None:
        """Keep how far these images are; only the newest state of each is kept, and none of a job that has ended."""
        self._db.executemany(
            "INSERT INTO checkpoints SELECT id, ?, ?, ?, ? FROM jobs WHERE id = ? AND ended IS NULL"
            " ON CONFLICT DO UPDATE SET step = excluded.step, steps = excluded.steps, frames = excluded.frames"
            " WHERE excluded.step > step",
            [(s.item, s.state.step, s.state.steps, msgspec.msgpack.encode(s.state.frames), s.job) for s in saves],
        )

    def keep(self, job: str, image: StoredImage) -> None:
        """Keep a finished image; the first of each place counts, and none of a job that has ended."""
        added = self._db.execute(
            "INSERT OR IGNORE INTO images SELECT id, ?, ?, ?, ?, ? FROM jobs WHERE id = ? AND ended IS NULL",
            (*image, job),
        )
        if added.rowcount:
            self._db.execute("UPDATE jobs SET bytes = bytes + ? WHERE id = ?", (len(image.image) + _ROW_BYTES, job))
        self._db.execute("DELETE FROM checkpoints WHERE job = ? AND item = ?", (job, image.item))

    def finish(self, job: str, state: JobState, failure: Failure | None, now: float) -> JobRecord | None:
        """End the job, and put down that its end is to be told. None where it has ended before, or is forgotten."""
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
        """Remove the job and all that belongs to it."""
        self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))

    # ---- room

    def sweep(self, before: float, most: int) -> int:
        """Remove what ended before that time, then the oldest results until `most` bytes are left; gives how many."""
        removed = self._db.execute("DELETE FROM jobs WHERE ended < ?", (before,)).rowcount
        removed += self._db.execute("DELETE FROM keys WHERE made < ? AND job IS NULL", (before,)).rowcount
        excess = self.size() - most
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
        """Time, bytes and name of all that may go: what is still to be done may not."""
        return self._db.execute(
            "SELECT ended AS at, bytes, id, NULL, NULL FROM jobs WHERE ended IS NOT NULL"
            " UNION ALL SELECT made, bytes, NULL, owner, key FROM keys WHERE job IS NULL ORDER BY at"
        ).fetchall()

    def size(self) -> int:
        """What jobs and kept answers take."""
        (size,) = self._db.execute(
            "SELECT (SELECT ifnull(sum(bytes), 0) FROM jobs) + (SELECT ifnull(sum(bytes), 0) FROM keys)"
        ).fetchone()
        return int(size)

    # ---- idempotency keys of requests that are not jobs

    def recall(self, key: IdempotencyKey) -> StoredResponse | None:
        """The answer that is kept for the key. Raises `IdempotencyKeyReused`."""
        known = self._stored_key(key)
        return StoredResponse(*known[1:]) if known is not None and known[0] is None else None

    def remember(self, key: IdempotencyKey, answer: StoredResponse, now: float) -> None:
        """Keep the answer; the first for a key counts."""
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
        """Ended jobs whose end is to be told now, with the attempts made so far."""
        rows = self._db.execute(
            "SELECT job, attempts FROM deliveries WHERE due <= ? ORDER BY due LIMIT ?", (now, limit)
        ).fetchall()
        return [(self._require(job), attempts) for job, attempts in rows]

    def next_due(self) -> float | None:
        """When the next message is due."""
        (due,) = self._db.execute("SELECT min(due) FROM deliveries WHERE due IS NOT NULL").fetchone()
        return None if due is None else float(due)

    def attempted(self, job: str, due: float | None, delivered: float | None) -> None:
        """A delivery was tried: it is due again, or was received, or is given up."""
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
