"""The table of webhooks to deliver."""

from __future__ import annotations

import sqlite3

from loadbalancer.storage.records import PendingDelivery

#: Due deliveries, the owners in turn: of each at most some, and of each host of an owner at most a few.
_DUE = """
    SELECT job, attempts, owner, host FROM (
        SELECT *, row_number() OVER (PARTITION BY owner ORDER BY due) AS of_owner FROM (
            SELECT job, attempts, owner, host, due, row_number() OVER (PARTITION BY owner, host ORDER BY due) AS of_host
            FROM deliveries WHERE due <= ?)
        WHERE of_host <= ?)
    WHERE of_owner <= ? ORDER BY of_owner, due LIMIT ?
"""
#: Limits of the deliveries that are read at once: of one host of an owner, of one owner, of all.
_DUE_OF_HOST, _DUE_OF_OWNER, _DUE_OF_ALL = 8, 64, 1024


class DeliveryTable:
    """Deliveries by job. Used inside the transactions of `Repository`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def due(self, now: float) -> list[PendingDelivery]:
        """Return the deliveries that are due, a bounded number of each owner and host."""
        rows = self._db.execute(_DUE, (now, _DUE_OF_HOST, _DUE_OF_OWNER, _DUE_OF_ALL))
        return [PendingDelivery(*row) for row in rows]

    def next_due(self, after: float = 0.0) -> float | None:
        """Return the time of the next delivery that is due later than `after`."""
        (due,) = self._db.execute("SELECT min(due) FROM deliveries WHERE due > ?", (after,)).fetchone()
        return None if due is None else float(due)

    def attempted(self, job: str, due: float | None, delivered: float | None) -> None:
        """Record an attempt: it is `delivered`, or `due` again, or has failed for good (both None)."""
        self._db.execute(
            "UPDATE deliveries SET attempts = attempts + 1, due = ?, delivered = ? WHERE job = ?", (due, delivered, job)
        )
