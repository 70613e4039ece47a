"""The manager of jobs on a real scheduler without workers, and on a file with damaged rows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadbalancer.jobs.manager import JobManager
from loadbalancer.schema.errors import Conflict, TooBusy
from loadbalancer.storage.database import Database
from loadbalancer.storage.records import IdempotencyKey, IdempotencyKeyReused, JobRecord, JobSpec, JobState
from scripts.harness.processes import PATIENCE_S
from tests.support.in_process_service import in_process_service, inputs


def spec(owner: str = "bob", model: str = "m", steps: int = 20) -> JobSpec:
    return JobSpec("/predict", model, [inputs(steps=steps)], 0, 1e12, owner, 1.0)


@contextlib.asynccontextmanager
async def manager(folder: Path, **jobs: object) -> AsyncIterator[tuple[JobManager, Database]]:
    """A manager that has not been started, and its database."""
    async with in_process_service(folder, {"jobs": jobs}) as service:
        scheduler = service.scheduler
        database = Database(folder / "jobs.sqlite3")
        made = JobManager(service.settings, scheduler, database)
        try:
            yield made, database
        finally:
            await made.stop()
            await database.close()


async def stored(database: Database, job: str) -> JobRecord:
    record = await database.do(lambda repository: repository.get(job))
    assert record is not None
    return record


async def ended(database: Database, job: str) -> JobRecord:
    async with asyncio.timeout(PATIENCE_S):
        while (record := await stored(database, job)).ended is None:
            await asyncio.sleep(0.02)
    return record


@pytest.mark.parametrize("change", ["state = 'paused'", "asked = '{}'", "created = 'yesterday'"])
async def test_damaged_rows_fail_and_the_others_are_resumed(tmp_path: Path, change: str) -> None:
    async with manager(tmp_path) as (jobs, database):
        for job in ("damaged", "sound"):
            await database.do(lambda repository, job=job: repository.add(job, spec(), [], None, 1.0))  # type: ignore[misc]
        await database.do(
            lambda repository: repository._db.execute(f"UPDATE jobs SET {change} WHERE id = 'damaged'").close()
        )
        await jobs.start()
        record = await ended(database, "damaged")
        assert (record.state, record.failure and record.failure.error.code) == (JobState.FAILED, "job_unreadable")
        assert (await stored(database, "sound")).ended is None
        assert (len(jobs), jobs.task_failures.total()) == (1, 0)


async def test_a_job_that_cannot_be_queued_fails_alone(tmp_path: Path) -> None:
    async with manager(tmp_path) as (jobs, database):
        await jobs.start()
        odd = await jobs.add(spec(model="gone"), [], None)
        sound = await jobs.add(spec(), [], None)
        record = await ended(database, odd.id)
        assert record.failure is not None
        assert record.failure.error.code == "model_not_found"
        assert (await stored(database, sound.id)).ended is None


async def test_a_job_whose_end_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    async with manager(tmp_path) as (jobs, database):
        await jobs.start()
        odd, sound = [await jobs.add(spec(), [], None) for _ in range(2)]
        run = jobs._runs[odd.id]
        await run.entered.wait()
        run.fail(Conflict("\ud800"))  # no JSON can hold it
        run._changed.set()
        record = await ended(database, odd.id)
        assert record.failure is not None
        assert record.failure.error.code == "internal_error"
        assert jobs.task_failures.total() == 1
        assert (await stored(database, sound.id)).ended is None


async def test_many_jobs_at_once_do_not_exceed_the_part_of_their_owner(tmp_path: Path) -> None:
    async with manager(tmp_path, max_unfinished=10, max_unfinished_per_key=4) as (jobs, _):
        await jobs.start()
        outcomes = await asyncio.gather(*(jobs.add(spec("bob"), [], None) for _ in range(20)), return_exceptions=True)
        assert sum(isinstance(each, TooBusy) for each in outcomes) == 16
        assert len(jobs) == 4
        await jobs.add(spec("alice"), [], None)


async def test_charges_of_jobs_that_are_not_accepted_are_returned(tmp_path: Path) -> None:
    key = IdempotencyKey("bob", "order-17", b"digest")
    used: list[tuple[str, int]] = []
    async with manager(tmp_path, max_unfinished=10, max_unfinished_per_key=1) as (jobs, _):
        await jobs.start()
        first = await jobs.add(spec(), [], key, lambda tokens: used.append(("first", tokens)))
        again = await jobs.add(spec(), [], key, lambda tokens: used.append(("again", tokens)))
        assert (again.id, used) == (first.id, [("again", 0)])
        other = key._replace(digest=b"other")
        with pytest.raises(IdempotencyKeyReused):
            await jobs.add(spec(), [], other, lambda tokens: used.append(("reused", tokens)))
        with pytest.raises(TooBusy):
            await jobs.add(spec(), [], None, lambda tokens: used.append(("refused", tokens)))
        await jobs.discard(first.id, "bob")
        assert used == [("again", 0), ("reused", 0), ("refused", 0), ("first", 0)]
