"""Many rows of webhooks to deliver."""

from __future__ import annotations

from collections.abc import Sequence

from loadbalancer.storage.repository import Repository


def many_due(repository: Repository, places: Sequence[tuple[str, str]]) -> None:
    """Add a delivery for each owner and host, due one second after the other from 10 s on."""
    db = repository._db
    db.executemany(
        "INSERT INTO jobs (id, owner, state, asked, created, ended, bytes) VALUES (?, ?, 'done', '{}', 1, 1, 1)",
        [(f"due{number}", owner) for number, (owner, _) in enumerate(places)],
    )
    db.executemany(
        "INSERT INTO deliveries (job, attempts, due, owner, host) VALUES (?, 0, ?, ?, ?)",
        [(f"due{number}", 10.0 + number, owner, host) for number, (owner, host) in enumerate(places)],
    )
