"""The tables in memory."""

from __future__ import annotations

import sqlite3

from loadbalancer.storage.migrations import migrate
from loadbalancer.storage.repository import Repository


def memory() -> Repository:
    """Return empty tables."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    migrate(connection)
    return Repository(connection)
