"""The tables of durable jobs and of responses stored for their idempotency keys.

Every method is one step of a transaction that `Database` opens and commits in its own thread. The end of a job is
written once: `finish` returns None for a second one. Times are Unix seconds.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from loadbalancer.scheduling.owner_quota import fair_level
from loadbalancer.scheduling.task import Checkpoint
from loadbalancer.storage.delivery_table import DeliveryTable
from loadbalancer.storage.records import (
    MAX_PAUSE_S,
    UNREADABLE_SPEC,
    Failure,
    IdempotencyKey,
    IdempotencyKeyReused,
    JobPage,
    JobRecord,
    JobSpec,
    JobState,
    RetentionLimits,
    StoredCheckpoint,
    StoredImage,
    StoredResponse,
    with_all_images,
    without_repetition,
)
from loadbalancer.storage.result_table import ROW_BYTES, ResultTable
from wire.errors import ErrorDetail

_COLUMNS = "seq, id, asked, state, created, started, ended, failure"
_IMAGE_COLUMNS = "item, image, waited_s, ran_s, flagged, truncated_tokens"
_json = msgspec.json.Encoder()
_specs = msgspec.json.Decoder(JobSpec)
_failures = msgspec.json.Decoder(Failure)
_headers = msgspec.json.Decoder(dict[str, str])
_Times = tuple[float, float | None, float | None]
_frames = msgspec.msgpack.Decoder(list[bytes])
_UNREADABLE = Failure(
    500, ErrorDetail("The stored data of this job cannot be read.", "server_error", None, "job_unreadable")
)
#: Bytes of specs in a page of jobs, beyond which it ends early: all storage waits while it is read.
_PAGE_BYTES = 1 << 18
#: Limit of rows that one step of a sweep deletes. All other work waits for a step; more rows gain no speed.
SWEEP_ROWS = 50
#: Limit of pages that one sweep returns to the file system: a long sweep would delay writes.
_TRIM_PAGES = 1024


class Repository:
    """The tables, through one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self.results = ResultTable(connection)
        self.deliveries = DeliveryTable(connection)

    # ---- jobs

    def add(
        self, job: str, order: JobSpec, sources: Sequence[bytes], key: IdempotencyKey | None, now: float
    ) -> JobRecord:
        """Insert the job, or return the one stored with its idempotency key. Raises `IdempotencyKeyReused`."""
        existing = (self.job_of(key) if key is not None else None) or self.get(job)
        if existing is not None:  # under this key, or a repeated transaction
            return existing
        asked = _json.encode(without_repetition(order))
        size = len(asked) + sum(map(len, sources)) + ROW_BYTES
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

    def page(self, owner: str, limit: int, after: str | None, state: JobState | None) -> JobPage:
        """Return at most `limit` jobs of the owner that are older than `after`, newest first.

        A page of large jobs ends earlier, after about 256 KiB of requests.
        """
        before = None if after is None else self.get(after, owner)
        seq = 2**62 if before is None else before.seq
        only, values = ("", (owner, seq)) if state is None else (" AND state = ?", (owner, seq, state))
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE owner = ? AND seq < ?{only} ORDER BY seq DESC LIMIT ?",  # noqa: S608
            (*values, limit + 1),
        )
        records: list[JobRecord] = []
        size = 0
        for row in rows:
            if len(records) == limit or size > _PAGE_BYTES:
                return JobPage(records, True)
            records.append(_record(row))
            size += len(row[2]) if isinstance(row[2], bytes) else 0
        return JobPage(records, False)

    def unfinished(self) -> list[JobRecord]:
        """Return the unfinished jobs, oldest first."""
        statement = f"SELECT {_COLUMNS} FROM jobs INDEXED BY jobs_unfinished WHERE ended IS NULL ORDER BY seq"  # noqa: S608
        return [_record(row) for row in self._db.execute(statement)]

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
        """Return the bytes of source images by job. Only unfinished jobs have some."""
        return dict(self._db.execute("SELECT job, sum(length(pixels)) FROM sources GROUP BY job").fetchall())

    def images(self, job: str) -> list[StoredImage]:
        """Return the finished images in order."""
        rows = self._db.execute(f"SELECT {_IMAGE_COLUMNS} FROM images WHERE job = ? ORDER BY item", (job,))  # noqa: S608
        return [_image(row) for row in rows]

    def image(self, job: str, item: int) -> StoredImage | None:
        """Return one finished image; None if it does not exist."""
        statement = f"SELECT {_IMAGE_COLUMNS} FROM images WHERE job = ? AND item = ?"  # noqa: S608
        row = self._db.execute(statement, (job, item)).fetchone()
        return None if row is None else _image(row)

    def finished_items(self, job: str) -> list[int]:
        """Return the indexes of the finished images, without reading them."""
        return [item for (item,) in self._db.execute("SELECT item FROM images WHERE job = ? ORDER BY item", (job,))]

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
            "INSERT OR IGNORE INTO images SELECT id, ?, ?, ?, ?, ?, ? FROM jobs WHERE id = ? AND ended IS NULL",
            (*image, job),
        )
        if added.rowcount:
            self._db.execute("UPDATE jobs SET bytes = bytes + ? WHERE id = ?", (len(image.image) + ROW_BYTES, job))
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
            self._db.execute(
                "INSERT INTO deliveries (job, attempts, due, owner, host) VALUES (?, 0, ?, ?, ?)",
                (job, now, record.order.owner, _host(record.order.hook.url)),
            )
        return record

    def forget(self, job: str) -> None:
        """Delete the job and all its rows."""
        self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))

    # ---- size limit

    def sweep(self, limits: RetentionLimits) -> int:
        """Delete what is too old, then the oldest results of the owners who hold the most. Returns their number.

        At most `SWEEP_ROWS` of each kind are deleted by one call.
        """
        removed = self._delete_before("jobs", "ended", "ended IS NOT NULL", limits.before)
        removed += self._delete_before("keys", "made", "job IS NULL", limits.before)
        removed += self._delete_before("results", "made", "TRUE", limits.results_before)
        removed += self._shrink("results", "made", "TRUE", limits.result_bytes)
        removed += self._shrink("jobs", "ended", "ended IS NOT NULL", limits.job_bytes)
        removed += self._shrink("keys", "made", "job IS NULL", limits.response_bytes)
        self._db.execute(f"PRAGMA incremental_vacuum({_TRIM_PAGES})").fetchall()
        return removed

    def bound_times(self, now: float) -> None:
        """Make what lies in the future now, because the system clock was set back since.

        It would stay or wait for too long. At most `SWEEP_ROWS` of each kind are changed by one call.
        """
        latest = (("results", "made", now), ("keys", "made", now), ("jobs", "ended", now))
        for table, time, bound in (*latest, ("deliveries", "due", now + MAX_PAUSE_S)):
            self._db.execute(
                f"UPDATE {table} SET {time} = ? WHERE rowid IN"  # noqa: S608
                f" (SELECT rowid FROM {table} WHERE {time} > ? LIMIT {SWEEP_ROWS})",
                (now, bound),
            )

    def _delete_before(self, table: str, time: str, deletable: str, before: float) -> int:
        return self._db.execute(
            f"DELETE FROM {table} WHERE rowid IN"  # noqa: S608
            f" (SELECT rowid FROM {table} WHERE {deletable} AND {time} < ? ORDER BY {time} LIMIT {SWEEP_ROWS})",
            (before,),
        ).rowcount

    def _shrink(self, table: str, time: str, deletable: str, max_bytes: int) -> int:
        """Delete the oldest rows of the owners above the fair level. Unfinished jobs count, and stay."""
        held: dict[str, int] = dict(
            self._db.execute("SELECT owner, bytes FROM held_bytes WHERE kind = ?", (table,)).fetchall()
        )
        if sum(held.values()) <= max_bytes:
            return 0
        level = fair_level(held.values(), max_bytes)
        oldest: list[tuple[int]] = []
        for owner, size in sorted(held.items(), key=lambda item: -item[1]):
            excess = size - level
            rows = self._db.execute(
                f"SELECT rowid, bytes FROM {table} WHERE owner = ? AND {deletable} ORDER BY {time}",  # noqa: S608
                (owner,),
            )
            while excess > 0 and len(oldest) < SWEEP_ROWS and (row := rows.fetchone()) is not None:
                oldest.append((row[0],))
                excess -= row[1]
            rows.close()
        self._db.executemany(f"DELETE FROM {table} WHERE rowid = ?", oldest)  # noqa: S608
        return len(oldest)

    def size(self) -> int:
        """Return the bytes of jobs and stored responses."""
        (size,) = self._db.execute(
            "SELECT ifnull(sum(bytes), 0) FROM held_bytes WHERE kind IN ('jobs', 'keys')"
        ).fetchone()
        return int(size)

    # ---- idempotency keys of requests that are not jobs

    def recall(self, key: IdempotencyKey) -> StoredResponse | None:
        """Return the response stored for the key. Raises `IdempotencyKeyReused`."""
        known = self._stored_key(key)
        if known is None or known[0] is not None:
            return None
        _, status, media_type, body, headers = known
        return StoredResponse(status, media_type, body, {} if headers is None else _headers.decode(headers))

    def remember(self, key: IdempotencyKey, answer: StoredResponse, now: float) -> None:
        """Store the response, unless the key has one."""
        self._db.execute(
            "INSERT OR IGNORE INTO keys (owner, key, digest, made, status, media_type, body, headers, bytes)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, now, *answer[:3], _json.encode(answer.headers), len(answer.body) + ROW_BYTES),
        )

    def _stored_key(self, key: IdempotencyKey) -> tuple[str | None, int, str, bytes, bytes | None] | None:
        row = self._db.execute(
            "SELECT digest, job, status, media_type, body, headers FROM keys WHERE owner = ? AND key = ?",
            (key.owner, key.key),
        ).fetchone()
        if row is not None and row[0] != key.digest:
            raise IdempotencyKeyReused
        return None if row is None else row[1:]

    def _require(self, job: str) -> JobRecord:
        record = self.get(job)
        assert record is not None
        return record


def _host(url: str) -> str:
    """Return host and port of the URL."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _image(row: tuple[Any, ...]) -> StoredImage:
    index, image, waited_s, ran_s, flagged, truncated_tokens = row
    return StoredImage(index, image, waited_s, ran_s, bool(flagged), truncated_tokens)


def _record(row: tuple[Any, ...]) -> JobRecord:
    """Return the row as a record. A damaged one, or one of a newer program, is an unreadable record."""
    seq, job, asked, state, created, started, ended, failure = row
    try:
        order = with_all_images(_specs.decode(asked))
        stored_failure = None if failure is None else _failures.decode(failure)
        created_at, started_at, ended_at = msgspec.convert((created, started, ended), _Times)
        if not order.inputs or not order.weight > 0:
            raise ValueError("no images, or no weight")
        return JobRecord(seq, job, order, JobState(state), created_at, started_at, ended_at, stored_failure)
    except (msgspec.MsgspecError, TypeError, ValueError):
        state = JobState.QUEUED if ended is None else JobState.FAILED
        return JobRecord(seq, job, UNREADABLE_SPEC, state, 0.0, None, None if ended is None else 0.0, _UNREADABLE)
