"""The tables of the database, as the changes that led to them."""

from __future__ import annotations

import sqlite3

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
    """
    CREATE INDEX jobs_by_state ON jobs (owner, state, seq);
    CREATE INDEX job_bytes_of_owner ON jobs (owner, ended, bytes);
    CREATE INDEX responses_of_owner ON keys (owner, made, bytes) WHERE job IS NULL;
    """,
    """
    ALTER TABLE deliveries ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    ALTER TABLE deliveries ADD COLUMN host TEXT NOT NULL DEFAULT '';
    UPDATE deliveries SET owner = (SELECT owner FROM jobs WHERE id = job);
    CREATE INDEX deliveries_of_host ON deliveries (owner, host, due) WHERE due IS NOT NULL;
    """,
    """
    CREATE TABLE results (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, media_type TEXT NOT NULL, made REAL NOT NULL, bytes INTEGER NOT NULL,
        job TEXT REFERENCES jobs (id) ON DELETE CASCADE, item INTEGER, image BLOB);
    CREATE INDEX results_of_owner ON results (owner, made, bytes);
    CREATE INDEX results_by_age ON results (made);
    CREATE INDEX results_of_job ON results (job, item) WHERE job IS NOT NULL;
    """,
    """
    ALTER TABLE keys ADD COLUMN headers BLOB;
    """,
    """
    ALTER TABLE images ADD COLUMN truncated_tokens INTEGER NOT NULL DEFAULT 0;
    """,
    # Of rows without a job the first index made SQLite read all, where the others would have served.
    """
    DROP INDEX keys_of_job;
    CREATE INDEX keys_of_job ON keys (job) WHERE job IS NOT NULL;
    CREATE INDEX responses_by_age ON keys (made) WHERE job IS NULL;
    CREATE TABLE held_bytes (
        kind TEXT NOT NULL, owner TEXT NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (kind, owner)) WITHOUT ROWID;
    INSERT INTO held_bytes SELECT 'jobs', owner, sum(bytes) FROM jobs GROUP BY owner;
    INSERT INTO held_bytes SELECT 'keys', owner, sum(bytes) FROM keys WHERE job IS NULL GROUP BY owner;
    INSERT INTO held_bytes SELECT 'results', owner, sum(bytes) FROM results GROUP BY owner;
    CREATE TRIGGER job_added AFTER INSERT ON jobs BEGIN
        INSERT OR IGNORE INTO held_bytes VALUES ('jobs', NEW.owner, 0);
        UPDATE held_bytes SET bytes = bytes + NEW.bytes WHERE kind = 'jobs' AND owner = NEW.owner;
    END;
    CREATE TRIGGER job_resized AFTER UPDATE OF bytes ON jobs BEGIN
        UPDATE held_bytes SET bytes = bytes + NEW.bytes - OLD.bytes WHERE kind = 'jobs' AND owner = NEW.owner;
    END;
    CREATE TRIGGER job_deleted AFTER DELETE ON jobs BEGIN
        UPDATE held_bytes SET bytes = bytes - OLD.bytes WHERE kind = 'jobs' AND owner = OLD.owner;
    END;
    CREATE TRIGGER response_added AFTER INSERT ON keys WHEN NEW.job IS NULL BEGIN
        INSERT OR IGNORE INTO held_bytes VALUES ('keys', NEW.owner, 0);
        UPDATE held_bytes SET bytes = bytes + NEW.bytes WHERE kind = 'keys' AND owner = NEW.owner;
    END;
    CREATE TRIGGER response_deleted AFTER DELETE ON keys WHEN OLD.job IS NULL BEGIN
        UPDATE held_bytes SET bytes = bytes - OLD.bytes WHERE kind = 'keys' AND owner = OLD.owner;
    END;
    CREATE TRIGGER result_added AFTER INSERT ON results BEGIN
        INSERT OR IGNORE INTO held_bytes VALUES ('results', NEW.owner, 0);
        UPDATE held_bytes SET bytes = bytes + NEW.bytes WHERE kind = 'results' AND owner = NEW.owner;
    END;
    CREATE TRIGGER result_deleted AFTER DELETE ON results BEGIN
        UPDATE held_bytes SET bytes = bytes - OLD.bytes WHERE kind = 'results' AND owner = OLD.owner;
    END;
    """,
)


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the missing migrations. Raises `sqlite3.DatabaseError` for a file of a newer program."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise sqlite3.DatabaseError(f"its version is {version}; this program knows {len(MIGRATIONS)}")
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")
