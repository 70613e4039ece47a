"""The tables in memory."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from loadbalancer.storage.migrations import migrate
from loadbalancer.storage.repository import Repository


@contextlib.contextmanager
def memory() -> Iterator[Repository]:
    """Give empty tables, which are gone afterwards."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        migrate(connection)
        yield Repository(connection)
