"""No query reads a whole table: the database has one thread, in which all others would wait for it."""

from __future__ import annotations

import inspect
import re
import sqlite3
from collections.abc import Callable

import pytest

from loadbalancer.scheduling.task import Checkpoint
from loadbalancer.storage.delivery_table import DeliveryTable
from loadbalancer.storage.records import (
    IdempotencyKey,
    JobSpec,
    JobState,
    RetentionLimits,
    StoredCheckpoint,
    StoredImage,
    StoredResponse,
    WebhookTarget,
)
from loadbalancer.storage.repository import Repository
from loadbalancer.storage.result_table import ResultTable
from tests.support.deliveries import many_due
from tests.support.in_process_service import inputs

Query = Callable[[Repository], object]
KEY = IdempotencyKey("alice", "k0", b"1")
ANSWER = StoredResponse(200, "text/plain", b"x")
HOOK = WebhookTarget("http://receiver.example/")
SPEC = JobSpec("/predict", "m", [inputs()], 0, 1e12, "alice", 1.0, hook=HOOK)
IMAGE = StoredImage(0, b"x", 0.1, 0.1, flagged=False)
#: One call of each method that works on the tables; several where the query depends on the arguments.
CASES: dict[str, list[Query]] = {
    "Repository.add": [lambda r: r.add("new", SPEC, [b"x"], KEY._replace(key="new"), 1.0)],
    "Repository.job_of": [lambda r: r.job_of(KEY)],
    "Repository.get": [lambda r: r.get("j0", "alice")],
    "Repository.page": [
        lambda r: r.page("alice", 5, None, None),
        lambda r: r.page("alice", 5, "j2", None),
        lambda r: r.page("alice", 5, "j2", JobState.DONE),
    ],
    "Repository.unfinished": [lambda r: r.unfinished()],
    "Repository.fail_unreadable": [lambda r: r.fail_unreadable(1.0)],
    "Repository.sources": [lambda r: r.sources("j3")],
    "Repository.source_bytes": [lambda r: r.source_bytes()],
    "Repository.images": [lambda r: r.images("j0")],
    "Repository.image": [lambda r: r.image("j0", 0)],
    "Repository.finished_items": [lambda r: r.finished_items("j0")],
    "Repository.checkpoints": [lambda r: r.checkpoints("j3")],
    "Repository.started": [lambda r: r.started("j3", 1.0)],
    "Repository.save": [lambda r: r.save([StoredCheckpoint("j3", 0, Checkpoint(1, 2, [b"x"]))])],
    "Repository.keep": [lambda r: r.keep("j3", IMAGE)],
    "Repository.finish": [lambda r: r.finish("j3", JobState.DONE, None, 1.0)],
    "Repository.forget": [lambda r: r.forget("j0")],
    "Repository.sweep": [
        lambda r: r.sweep(RetentionLimits(0.0, 1 << 40, 1 << 40)),
        lambda r: r.sweep(RetentionLimits(2.0, 1 << 40, 1 << 40, 2.0)),
        lambda r: r.sweep(RetentionLimits(0.0, 0, 0, 0.0, 0)),
    ],
    "Repository.bound_times": [lambda r: r.bound_times(0.5)],
    "Repository.size": [lambda r: r.size()],
    "Repository.recall": [lambda r: r.recall(KEY)],
    "Repository.remember": [lambda r: r.remember(KEY._replace(key="new"), ANSWER, 1.0)],
    "DeliveryTable.due": [lambda r: r.deliveries.due(2.0)],
    "DeliveryTable.next_due": [lambda r: r.deliveries.next_due(0.5)],
    "DeliveryTable.attempted": [lambda r: r.deliveries.attempted("j0", 3.0, None)],
    "ResultTable.add": [lambda r: r.results.add("new", "alice", "image/png", b"x", 1.0)],
    "ResultTable.link": [lambda r: r.results.link("new", "image/png", "j0", 0, 1.0, 0.0)],
    "ResultTable.find": [lambda r: r.results.find("r0", 0.0)],
    "ResultTable.read": [lambda r: r.results.read("r0", 0, 1)],
}
#: Steps of plans that read all rows of an index, or sort rows, and why that is right.
ALLOWED = {
    ("Repository.unfinished", "SCAN jobs USING INDEX jobs_unfinished"): "its rows are the result",
    ("Repository.fail_unreadable", "SCAN jobs USING INDEX jobs_unfinished"): "it reads the unfinished jobs",
    ("Repository.source_bytes", "SCAN sources USING INDEX sqlite_autoindex_sources_1"): "its rows are the result",
    ("ResultTable.link", "USE TEMP B-TREE FOR ORDER BY"): "one image has few links",
}
#: What the queries of webhooks read of their own results.
_OWN_RESULTS = ("SCAN owners", "SCAN hosts", "SCAN CONSTANT ROW")


@pytest.fixture
def repository(repository: Repository) -> Repository:
    """Tables with a few rows of each kind. `j3` and `j4` are unfinished."""
    for number in range(5):
        repository.add(f"j{number}", SPEC, [b"x"], KEY._replace(key=f"k{number}"), 1.0)
        repository.remember(KEY._replace(key=f"response{number}"), ANSWER, 1.0)
        repository.results.add(f"r{number}", "alice", "image/png", b"x", 1.0)
        if number < 3:
            repository.keep(f"j{number}", IMAGE)
            repository.finish(f"j{number}", JobState.DONE, None, 1.0)
    return repository


def steps(connection: sqlite3.Connection, query: Callable[[], object]) -> list[str]:
    """Return the steps of the plans of all statements of the query that read everything, or sort."""
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    query()
    connection.set_trace_callback(None)
    found = []
    for statement in statements:
        if not statement.startswith(("--", "PRAGMA")):  # those of triggers and foreign keys are comments
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
            found += [str(row[3]) for row in plan]
    assert found or all("INSERT" in each for each in statements), statements
    return [step for step in found if re.match("SCAN|USE TEMP", step) and step not in _OWN_RESULTS]


def methods(*classes: type) -> set[str]:
    return {
        f"{owner.__name__}.{name}"
        for owner in classes
        for name, _ in inspect.getmembers(owner, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_method_has_a_case() -> None:
    assert set(CASES) == methods(Repository, DeliveryTable, ResultTable)


@pytest.mark.parametrize(
    ("name", "query"), [(name, query) for name, queries in CASES.items() for query in queries], ids=lambda each: each
)
def test_no_query_reads_a_whole_table(repository: Repository, name: str, query: Query) -> None:
    found = steps(repository._db, lambda: query(repository))
    assert [step for step in found if (name, step) not in ALLOWED] == []


def test_webhooks_are_found_by_an_index_however_many_are_due(repository: Repository) -> None:
    many_due(repository, [("alice", "hog.example")] * 1500 + [("alice", "receiver.example"), ("bob", "late.example")])
    assert steps(repository._db, lambda: repository.deliveries.due(1e9)) == []


def test_deleting_a_job_finds_its_rows_by_an_index(repository: Repository) -> None:
    """SQLite runs such a statement for each table that refers to jobs, and tells no plan of it."""
    db = repository._db
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
    referring = [table for table in tables if db.execute(f"PRAGMA foreign_key_list({table})").fetchall()]
    assert {"images", "keys", "results", "deliveries"} <= set(referring)
    for table in referring:
        assert steps(db, lambda: db.execute("DELETE FROM " + table + " WHERE job = 'j0'")) == []  # noqa: B023
