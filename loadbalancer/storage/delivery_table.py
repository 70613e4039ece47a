"""The table of webhooks to deliver."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator

from loadbalancer.storage.records import PendingDelivery

#: Limits of the deliveries that are read at once: of one host of an owner, of one owner, of all.
_DUE_OF_HOST, _DUE_OF_OWNER, _DUE_OF_ALL = 8, 64, 1024
#: Limit of the hosts that are looked at. Clients name as many as they like.
_MAX_HOSTS = 1024
_COLUMNS = "due, job, attempts, owner, host"
_OLDEST = f"SELECT {_COLUMNS} FROM deliveries WHERE due <= ? ORDER BY due LIMIT {_DUE_OF_ALL}"  # noqa: S608
_OF_HOST = f"SELECT {_COLUMNS} FROM deliveries WHERE owner = ? AND host = ? AND due <= ? ORDER BY due LIMIT ?"  # noqa: S608
# One search in the index for each value, however many rows have it.
_OWNERS = """
    WITH RECURSIVE owners (owner) AS (
        SELECT min(owner) FROM deliveries WHERE due IS NOT NULL UNION ALL
        SELECT (SELECT min(owner) FROM deliveries WHERE due IS NOT NULL AND owner > owners.owner)
        FROM owners WHERE owner IS NOT NULL LIMIT ?)
    SELECT owner FROM owners WHERE owner IS NOT NULL
"""
_HOSTS = """
    WITH RECURSIVE hosts (host) AS (
        SELECT min(host) FROM deliveries WHERE due IS NOT NULL AND owner = ? UNION ALL
        SELECT (SELECT min(host) FROM deliveries WHERE due IS NOT NULL AND owner = ? AND host > hosts.host)
        FROM hosts WHERE host IS NOT NULL LIMIT ?)
    SELECT host FROM hosts WHERE host IS NOT NULL
"""
#: The values of `_COLUMNS`.
_Row = tuple[float, str, int, str, str]


class DeliveryTable:
    """Deliveries by job. Used inside the transactions of `Repository`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def due(self, now: float) -> list[PendingDelivery]:
        """Return the deliveries that are due, a bounded number of each owner and host, the owners in turn.

        Among them are always the oldest, and those of every host unless an owner has very many.
        """
        rows: set[_Row] = set(self._db.execute(_OLDEST, (now,)))
        if len(rows) == _DUE_OF_ALL:  # there may be more, of others
            owners = self._db.execute(_OWNERS, (_MAX_HOSTS,)).fetchall()
            for (owner,) in owners:
                rows.update(self._due_of(owner, now, _MAX_HOSTS // len(owners)))
        return _in_turn(rows)

    def _due_of(self, owner: str, now: float, max_hosts: int) -> Iterator[_Row]:
        """Yield deliveries of the owner that are due, of each host as many."""
        hosts = self._db.execute(_HOSTS, (owner, owner, max_hosts)).fetchall()
        of_host = min(max(_DUE_OF_OWNER // max(len(hosts), 1), 1), _DUE_OF_HOST)
        for (host,) in hosts:
            yield from self._db.execute(_OF_HOST, (owner, host, now, of_host))

    def next_due(self, after: float = 0.0) -> float | None:
        """Return the time of the next delivery that is due later than `after`."""
        (due,) = self._db.execute("SELECT min(due) FROM deliveries WHERE due > ?", (after,)).fetchone()
        return None if due is None else float(due)

    def attempted(self, job: str, due: float | None, delivered: float | None) -> None:
        """Record an attempt: it is `delivered`, or `due` again, or has failed for good (both None)."""
        self._db.execute(
            "UPDATE deliveries SET attempts = attempts + 1, due = ?, delivered = ? WHERE job = ?", (due, delivered, job)
        )


def _in_turn(rows: Iterable[_Row]) -> list[PendingDelivery]:
    """Return the oldest of each host and owner, as many as are read at once: the first of each owner, then the next."""
    of_host: Counter[tuple[str, str]] = Counter()
    of_owner: Counter[str] = Counter()
    chosen: list[tuple[int, _Row]] = []
    for row in sorted(rows):
        owner, host = row[3:]
        if of_host[owner, host] < _DUE_OF_HOST and of_owner[owner] < _DUE_OF_OWNER:
            of_host[owner, host] += 1
            of_owner[owner] += 1
            chosen.append((of_owner[owner], row))
    return [PendingDelivery(*row[1:]) for _, row in sorted(chosen)[:_DUE_OF_ALL]]
