"""The ledger against a model of it in plain dictionaries, over random histories; and what a file of version 1 holds."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from loadbalancer.scheduling.owner_quota import fair_level
from loadbalancer.scheduling.task import Checkpoint
from loadbalancer.storage.records import (
    TERMINAL_STATES,
    Failure,
    IdempotencyKey,
    IdempotencyKeyReused,
    JobSpec,
    JobState,
    RetentionLimits,
    StoredCheckpoint,
    StoredImage,
    StoredResponse,
    WebhookTarget,
)
from loadbalancer.storage.repository import Repository
from tests.support.in_process_service import inputs
from tests.support.repositories import memory
from wire.errors import ErrorDetail

ITEMS = 2
FAILURE = Failure(504, ErrorDetail("late", "server_error", None, "timeout"))
OWNERS = st.sampled_from(["a", "b"])
NUMBERS = st.integers(0, 7)
PLACES = st.integers(0, ITEMS - 1)
KEYS = st.sampled_from([None, "k", "l"])


@dataclass
class Job:
    """What the model knows of a job."""

    order: JobSpec
    created: float
    sources: list[bytes]
    state: JobState = JobState.QUEUED
    started: float | None = None
    ended: float | None = None
    images: dict[int, bytes] = field(default_factory=dict)
    saved: dict[int, int] = field(default_factory=dict)
    attempts: int = 0
    due: float | None = None


class LedgerModel(RuleBasedStateMachine):
    """Random histories; what the ledger gives must always be what the model has."""

    def __init__(self) -> None:
        super().__init__()
        self._tables = contextlib.ExitStack()
        self.repository = self._tables.enter_context(memory())
        self.now = 1.0
        self.jobs: dict[str, Job] = {}
        self.keys: dict[tuple[str, str], tuple[bytes, str | bytes]] = {}

    def teardown(self) -> None:
        self._tables.close()

    def pick(self, number: int) -> str:
        """One of the jobs, or one that does not exist."""
        names = [*self.jobs, "nobody"]
        return names[number % len(names)]

    @rule(owner=OWNERS, hook=st.booleans(), given=KEYS, digest=st.sampled_from([b"1", b"2"]))
    def add(self, owner: str, hook: bool, given: str | None, digest: bytes) -> None:
        self.now += 1
        name = f"job{self.now:.0f}"
        asked = JobSpec(
            "/predict", "m", [inputs()] * ITEMS, 0, 9.0, owner, 1.0, None, WebhookTarget("http://x") if hook else None
        )
        key = None if given is None else IdempotencyKey(owner, given, digest)
        known = None if key is None else self.keys.get(key[:2])
        if known is not None and known[0] != digest:
            with pytest.raises(IdempotencyKeyReused):
                self.repository.add(name, asked, [b"x"], key, self.now)
            return
        record = self.repository.add(name, asked, [b"x"], key, self.now)
        if known is not None:
            assert record.id == known[1]
            return
        assert (record.id, record.order, record.state) == (name, asked, JobState.QUEUED)
        self.jobs[name] = Job(asked, self.now, [b"x"])
        if key is not None:
            self.keys[key[:2]] = digest, name

    @rule(number=NUMBERS)
    def start(self, number: int) -> None:
        self.now += 1
        name = self.pick(number)
        self.repository.started(name, self.now)
        job = self.jobs.get(name)
        if job is not None and job.ended is None:
            job.state, job.started = JobState.RUNNING, job.started or self.now

    @rule(number=NUMBERS, item=PLACES, step=st.integers(1, 20))
    def save(self, number: int, item: int, step: int) -> None:
        name = self.pick(number)
        self.repository.save([StoredCheckpoint(name, item, Checkpoint(step, 20, [b"state %d" % step]))])
        job = self.jobs.get(name)
        if job is not None and job.ended is None:
            job.saved[item] = max(step, job.saved.get(item, 0))

    @rule(number=NUMBERS, item=PLACES)
    def keep(self, number: int, item: int) -> None:
        self.now += 1
        name = self.pick(number)
        image = b"image %f" % self.now
        self.repository.keep(name, StoredImage(item, image, 0.5, 1.5, False))
        job = self.jobs.get(name)
        if job is not None and job.ended is None:
            job.images.setdefault(item, image)
            job.saved.pop(item, None)

    @rule(number=NUMBERS, state=st.sampled_from(TERMINAL_STATES))
    def finish(self, number: int, state: JobState) -> None:
        self.now += 1
        name = self.pick(number)
        failure = FAILURE if state is JobState.FAILED else None
        record = self.repository.finish(name, state, failure, self.now)
        job = self.jobs.get(name)
        assert (record is not None) == (job is not None and job.ended is None), "an end is written once"
        if record is None or job is None:
            return
        assert (record.state, record.failure, record.ended) == (state, failure, self.now)
        job.state, job.ended, job.sources = state, self.now, []
        job.saved.clear()
        job.due = self.now if job.order.hook else None

    @rule(number=NUMBERS, again=st.booleans())
    def deliver(self, number: int, again: bool) -> None:
        expected = [name for name, job in self.jobs.items() if job.due is not None and job.due <= self.now]
        due = self.repository.deliveries.due(self.now)
        found = [delivery.job for delivery in due]
        assert set(found) <= set(expected)
        assert {self.jobs[job].order.owner for job in found} == {self.jobs[job].order.owner for job in expected}
        for owner in ("a", "b"):
            own = [name for name in expected if self.jobs[name].order.owner == owner]
            assert sum(self.jobs[job].order.owner == owner for job in found) == min(len(own), 8), "of one host"
        if due:
            job, attempts, owner, host = due[number % len(due)]
            assert (attempts, owner, host) == (self.jobs[job].attempts, self.jobs[job].order.owner, "x")
            later = self.now + 2 if again else None
            self.repository.deliveries.attempted(job, later, None if again else self.now)
            self.jobs[job].due = later
            self.jobs[job].attempts += 1

    @rule(number=NUMBERS)
    def forget(self, number: int) -> None:
        name = self.pick(number)
        self.repository.forget(name)
        self._gone(name)

    @rule(owner=OWNERS, given=st.sampled_from(["k", "l", "m"]))
    def remember(self, owner: str, given: str) -> None:
        self.now += 1
        body = b"%f" % self.now
        self.repository.remember(IdempotencyKey(owner, given, b"3"), StoredResponse(200, "text/plain", body), self.now)
        self.keys.setdefault((owner, given), (b"3", body))

    @rule(age=st.integers(0, 10))
    def sweep_the_old(self, age: int) -> None:
        self.now += 1
        self.repository.sweep(RetentionLimits(self.now - age, 1 << 40, 1 << 40))
        for name in [n for n, job in self.jobs.items() if job.ended is not None and job.ended < self.now - age]:
            self._gone(name)
        for key, (_, what) in list(self.keys.items()):
            if isinstance(what, bytes) and float(what) < self.now - age:
                del self.keys[key]

    @rule(job_bytes=st.integers(0, 4000), response_bytes=st.integers(0, 4000))
    def sweep_for_room(self, job_bytes: int, response_bytes: int) -> None:
        ended = {name: job.ended for name, job in self.jobs.items() if job.ended is not None}
        answers = {key: float(what) for key, (_, what) in self.keys.items() if isinstance(what, bytes)}
        jobs_held, responses_held = self._held("jobs", "TRUE"), self._held("keys", "job IS NULL")
        removed = self.repository.sweep(RetentionLimits(0.0, job_bytes, response_bytes))
        left = {name for name in self.jobs if self.repository.get(name) is not None}
        kept = {key for key in answers if self._recalls(key)}
        assert removed == len(self.jobs) - len(left) + len(answers) - len(kept)
        assert left >= self.jobs.keys() - ended.keys(), "what is to be done stays"
        for owner in ("a", "b"):
            own = {name: at for name, at in ended.items() if self.jobs[name].order.owner == owner}
            self._check_evicted(owner, own, left, jobs_held, job_bytes)
            stored = {key: at for key, at in answers.items() if key[0] == owner}
            self._check_evicted(owner, stored, kept, responses_held, response_bytes)
        for name in self.jobs.keys() - left:
            self._gone(name)
        for key in answers.keys() - kept:
            del self.keys[key]

    def _check_evicted(
        self, owner: str, times: dict[Any, float], left: set[Any], held: dict[str, int], most: int
    ) -> None:
        """Check that an owner loses its oldest results, and none unless it holds more than its fair part."""
        gone, stays = [at for n, at in times.items() if n not in left], [at for n, at in times.items() if n in left]
        assert not gone or not stays or max(gone) <= min(stays), "the oldest go first"
        if gone:
            assert sum(held.values()) > most
            assert held[owner] > fair_level(held.values(), most)

    def _held(self, table: str, counted: str) -> dict[str, int]:
        rows = self.repository._db.execute(f"SELECT owner, sum(bytes) FROM {table} WHERE {counted} GROUP BY owner")
        return dict(rows.fetchall())

    def _gone(self, name: str) -> None:
        self.jobs.pop(name, None)
        self.keys = {key: known for key, known in self.keys.items() if known[1] != name}

    def _recalls(self, key: tuple[str, str]) -> bool:
        return self.repository.recall(IdempotencyKey(*key, b"3")) is not None

    @invariant()
    def jobs_agree(self) -> None:
        assert [record.id for record in self.repository.unfinished()] == [
            n for n, j in self.jobs.items() if not j.ended
        ]
        for name, job in self.jobs.items():
            record = self.repository.get(name, job.order.owner)
            assert record is not None
            assert (record.order, record.state) == (job.order, job.state)
            assert (record.created, record.started, record.ended) == (job.created, job.started, job.ended)
            assert self.repository.get(name, "stranger") is None
            assert self.repository.sources(name) == job.sources
            assert {kept.item: kept.image for kept in self.repository.images(name)} == job.images
            saved = self.repository.checkpoints(name)
            assert {item: state.step for item, state in saved.items()} == job.saved
            assert all(state.frames == [b"state %d" % state.step] for state in saved.values())
        pending = [job.due for job in self.jobs.values() if job.due is not None]
        assert self.repository.deliveries.next_due() == min(pending, default=None)

    @rule(number=NUMBERS, item=PLACES)
    def link(self, number: int, item: int) -> None:
        """Images behind URLs: of a job, with which they end, and others."""
        self.now += 1
        name = self.pick(number)
        self.repository.results.link(f"link{self.now}", "image/png", name, item, self.now, self.now - 2)
        self.repository.results.add(f"result{self.now}", "ab"[item], "image/png", b"x" * number, self.now)

    @invariant()
    def held_bytes_are_the_sums(self) -> None:
        db = self.repository._db
        for table, counted in (("jobs", "TRUE"), ("keys", "job IS NULL"), ("results", "TRUE")):
            held = dict(db.execute("SELECT owner, bytes FROM held_bytes WHERE kind = ? AND bytes <> 0", (table,)))
            sums = dict(db.execute(f"SELECT owner, sum(bytes) FROM {table} WHERE {counted} GROUP BY owner"))
            assert held == sums, table

    @invariant()
    def keys_agree(self) -> None:
        for (owner, given), (digest, what) in self.keys.items():
            answer = self.repository.recall(IdempotencyKey(owner, given, digest))
            assert answer == (StoredResponse(200, "text/plain", what) if isinstance(what, bytes) else None)

    @invariant()
    def pages_agree(self) -> None:
        for owner in ("a", "b"):
            own = [name for name, job in reversed(self.jobs.items()) if job.order.owner == owner]
            assert self._paged(owner, None) == own
            assert self._paged(owner, JobState.DONE) == [n for n in own if self.jobs[n].state is JobState.DONE]

    def _paged(self, owner: str, state: JobState | None) -> list[str]:
        found: list[str] = []
        more = True
        while more:
            records, more = self.repository.page(owner, 2, found[-1] if found else None, state)
            assert len(records) <= 2
            found += [record.id for record in records]
        return found


LedgerModel.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestLedger = LedgerModel.TestCase


def test_bytes_are_counted_to_the_end(repository: Repository) -> None:
    asked = JobSpec("/predict", "m", [inputs()] * ITEMS, 0, 9.0, "a", 1.0)
    repository.add("j", asked, [bytes(1000), bytes(500)], None, 1.0)
    with_sources = repository.size()
    assert repository.source_bytes() == {"j": 1500}
    repository.keep("j", StoredImage(0, bytes(10_000), 0, 0, False))
    repository.keep("j", StoredImage(0, bytes(10_000), 0, 0, False))
    assert repository.size() - with_sources in range(10_000, 11_000), "once"
    before = repository.size()
    repository.finish("j", JobState.DONE, None, 2.0)
    assert before - repository.size() == 1500
    repository.forget("j")
    assert repository.size() == 0


def test_an_order_of_version_1_can_be_read() -> None:
    stored = (
        b'{"path":"/v1/images/generations","model":"m","inputs":[{"type":"image","prompt":"a seven","width":64,'
        b'"height":64,"steps":8,"guidance_scale":3.0,"seed":7,"scheduler":"ddim"}],"priority":0,"deadline":9.0,'
        b'"owner":"a","weight":1.0,"metadata":{"a":"b"},"hook":{"url":"http://x","secret":null}}'
    )
    order = msgspec.json.decode(stored, type=JobSpec)
    assert order.inputs == [inputs(seed=7, steps=8)]
    assert (order.metadata, order.hook) == ({"a": "b"}, WebhookTarget("http://x"))


@pytest.mark.parametrize(
    "change",
    [
        "state = 'paused'",
        "state = NULL",
        "asked = '{}'",
        "asked = x'ff'",
        "asked = NULL",
        "created = 'yesterday'",
        "ended = 'tomorrow'",
        "failure = x'00'",
    ],
)
def test_damaged_row_is_unreadable_and_ends(repository: Repository, change: str) -> None:
    db = repository._db
    asked = JobSpec("/predict", "m", [inputs()], 0, 9.0, "a", 1.0, None, WebhookTarget("http://x"))
    for job in ("damaged", "sound"):
        repository.add(job, asked, [], None, 1.0)
    db.executescript("PRAGMA writable_schema = ON")
    db.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE name = 'jobs'")
    db.executescript("PRAGMA writable_schema = RESET")
    db.execute(f"UPDATE jobs SET {change} WHERE id = 'damaged'")
    record = repository.get("damaged", "a")
    assert record is not None
    assert not record.readable
    assert [each.id for each in repository.page("a", 10, None, None).records] == ["sound", "damaged"]
    repository.fail_unreadable(2.0)
    assert [each.id for each in repository.unfinished()] == ["sound"]
    record = repository.get("damaged", "a")
    assert record is not None
    assert record.failure is not None
    assert record.failure.error.code == "job_unreadable"


def test_a_page_of_large_jobs_ends_early(repository: Repository) -> None:
    large = JobSpec("/predict", "m", [inputs(prompt="p" * 100_000)], 0, 9.0, "a", 1.0)
    for number in range(5):
        repository.add(f"j{number}", large, [], None, 1.0)
    records, more = repository.page("a", 100, None, None)
    assert (len(records), more) == (3, True)
    assert [each.id for each in repository.page("a", 100, records[-1].id, None).records] == ["j1", "j0"]


def test_stored_responses_do_not_displace_jobs_of_others(repository: Repository) -> None:
    repository.add("j", JobSpec("/predict", "m", [inputs()], 0, 9.0, "bob", 1.0), [], None, 1.0)
    repository.finish("j", JobState.DONE, None, 2.0)
    for number in range(60):
        response = StoredResponse(200, "text/plain", bytes(5000))
        repository.remember(IdempotencyKey("alice", f"k{number}", b"3"), response, 3.0 + number)
    repository.sweep(RetentionLimits(0.0, 100_000, 100_000))
    assert repository.get("j", "bob") is not None
    assert repository.recall(IdempotencyKey("alice", "k0", b"3")) is None
    assert repository.recall(IdempotencyKey("alice", "k59", b"3")) is not None
