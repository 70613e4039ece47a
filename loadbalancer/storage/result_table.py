"""The table of images behind URLs."""

from __future__ import annotations

import sqlite3

from loadbalancer.storage.records import StoredResult

#: Estimated size of a row without its blobs.
ROW_BYTES = 512
#: The image of a result, its own or that of its job.
_RESULT_IMAGE = (
    "ifnull(image, (SELECT images.image FROM images WHERE images.job = results.job AND images.item = results.item))"
)


class ResultTable:
    """Images by unguessable ids: stored here, or linked to a job. Used inside the transactions of `Repository`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def add(self, result: str, owner: str, media_type: str, image: bytes, now: float) -> None:
        """Store an image under an unguessable id."""
        self._db.execute(
            "INSERT INTO results (id, owner, media_type, made, bytes, image) VALUES (?, ?, ?, ?, ?, ?)",
            (result, owner, media_type, now, len(image) + ROW_BYTES, image),
        )

    def link(self, result: str, media_type: str, job: str, item: int, now: float, not_before: float) -> str:
        """Return the id under which the image of a job is found: one that was made since `not_before`, else `result`.

        The image is not copied: the id ends with the job.
        """
        row = self._db.execute(
            "SELECT id FROM results WHERE job = ? AND item = ? AND made >= ? ORDER BY made DESC LIMIT 1",
            (job, item, not_before),
        ).fetchone()
        if row is not None:
            return str(row[0])
        self._db.execute(
            "INSERT INTO results (id, owner, media_type, made, bytes, job, item)"
            " SELECT ?, owner, ?, ?, ?, id, ? FROM jobs WHERE id = ?",
            (result, media_type, now, ROW_BYTES, item, job),
        )
        return result

    def find(self, result: str, not_before: float) -> StoredResult | None:
        """Return what is known of the image; None if it is older or does not exist."""
        row = self._db.execute(
            f"SELECT media_type, length({_RESULT_IMAGE}), made FROM results WHERE id = ? AND made >= ?",  # noqa: S608
            (result, not_before),
        ).fetchone()
        return None if row is None or row[1] is None else StoredResult(*row)

    def read(self, result: str, offset: int, size: int) -> bytes:
        """Return some bytes of the image; none if it was deleted."""
        row = self._db.execute(
            f"SELECT substr({_RESULT_IMAGE}, ?, ?) FROM results WHERE id = ?",  # noqa: S608
            (offset + 1, size, result),
        ).fetchone()
        return b"" if row is None or row[0] is None else bytes(row[0])
