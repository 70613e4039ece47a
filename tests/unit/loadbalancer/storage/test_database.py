"""The thread that writes: what it promises of a commit, and what it does when the disk takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from configs.data_dir import DataDirCheck
from loadbalancer.api.storage_errors import storage_error
from loadbalancer.storage.database import Database, StorageUnavailable, sweep_forever
from loadbalancer.storage.migrations import MIGRATIONS
from loadbalancer.storage.records import (
    MAX_PAUSE_S,
    IdempotencyKey,
    IdempotencyKeyReused,
    JobSpec,
    JobState,
    RetentionLimits,
    StoredResponse,
    WebhookTarget,
)
from loadbalancer.storage.repository import Repository
from scripts.harness.processes import PATIENCE_S
from tests.support.in_process_service import inputs


def order(owner: str = "a", deadline: float = 1e12) -> JobSpec:
    return JobSpec("/predict", "m", [inputs()], 0, deadline, owner, 1.0)


@contextlib.asynccontextmanager
async def journal_at(file: Path, max_file_bytes: int | None = None) -> AsyncIterator[Database]:
    database = Database(file, max_file_bytes)
    try:
        yield database
    finally:
        await database.close()


async def add(database: Database, job: str, size: int = 0) -> str:
    record = await database.do(
        lambda repository: repository.add(job, order(), [bytes(size)] if size else [], None, 1.0)
    )
    return record.id


async def fill(database: Database, made: list[str]) -> None:
    """Add jobs, and their names to `made`, until one is refused."""
    while len(made) < 200:
        made.append(await add(database, f"j{len(made)}", 5000))


async def jobs(database: Database) -> list[str]:
    return [record.id for record in await database.do(Repository.unfinished)]


async def test_what_was_acknowledged_is_there_for_whoever_opens_the_file(tmp_path: Path) -> None:
    file = tmp_path / "jobs" / "j.sqlite3"
    async with journal_at(file) as database:
        assert await asyncio.gather(*(add(database, f"j{i}") for i in range(50))) == [f"j{i}" for i in range(50)]
        with contextlib.closing(sqlite3.connect(file)) as other:  # before it is closed: a crash would find as much
            assert other.execute("SELECT count(*) FROM jobs").fetchone() == (50,)
            assert other.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert file.parent.stat().st_mode & 0o077 == 0, "prompts are nobody else's business"
    async with journal_at(file) as database:
        assert await jobs(database) == [f"j{i}" for i in range(50)]


async def test_a_piece_that_fails_is_undone_alone(tmp_path: Path) -> None:
    def broken(repository: Repository) -> None:
        repository.add("half", order(), [], None, 1.0)
        raise ValueError("on purpose")

    def wrong(repository: Repository) -> None:
        repository.add("half", order(), [], None, 1.0)
        repository._db.execute("SELECT * FROM nowhere")

    async with journal_at(tmp_path / "j") as database:
        outcomes = await asyncio.gather(
            add(database, "before"),
            database.do(broken),
            database.do(wrong),
            add(database, "after"),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [str, ValueError, StorageUnavailable, str]
        assert await jobs(database) == ["before", "after"]


async def test_whoever_stops_waiting_harms_nobody(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j") as database:
        gone = asyncio.create_task(add(database, "gone"))
        await asyncio.sleep(0)
        gone.cancel()
        await add(database, "stays")
        assert await jobs(database) == ["gone", "stays"]


async def test_what_is_stored_is_read_while_the_system_refuses_to_write(tmp_path: Path) -> None:
    """As with a disk quota: SQLite calls it an I/O error, and not a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    made: list[str] = []
    async with journal_at(tmp_path / "jobs" / "j.sqlite3") as database:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300 << 10, hard))
        try:
            for _ in range(3):
                before = len(made)
                with pytest.raises(StorageUnavailable) as refused:
                    await fill(database, made)
                assert refused.value.full
                assert await jobs(database) == made
                assert len(made) > before, "the file has room when its log has none"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        made.append(await add(database, "later", 5000))
        assert await jobs(database) == made


@pytest.mark.parametrize("limit_bytes", [40 << 10, 16 << 10], ids=["room for the index of the log", "no room"])
async def test_a_log_is_read_after_a_crash_while_the_system_refuses_to_write(tmp_path: Path, limit_bytes: int) -> None:
    """The log is as it was when the process died, and larger than what may be written."""
    file, crashed = tmp_path / "jobs" / "j", tmp_path / "crashed" / "j"
    async with journal_at(file) as database:
        made = [await add(database, f"j{i}", 5000) for i in range(20)]
        crashed.parent.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{file}{suffix}", f"{crashed}{suffix}")
    assert Path(f"{crashed}-wal").stat().st_size > 2 * limit_bytes
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        async with journal_at(crashed) as database:
            for _ in range(2):
                assert await jobs(database) == made
                with pytest.raises(StorageUnavailable) as refused:
                    await add(database, "refused", 5000)
                assert refused.value.full
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            made.append(await add(database, "later", 5000))
            assert await jobs(database) == made
            with contextlib.closing(sqlite3.connect(crashed)) as other:
                assert other.execute("SELECT count(*) FROM jobs").fetchone() == (len(made),)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_free_pages_can_be_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "j"
    for _ in range(2):
        async with journal_at(file) as database:
            await jobs(database)
    with contextlib.closing(sqlite3.connect(file)) as other:
        assert other.execute("PRAGMA auto_vacuum").fetchone() == (2,)


async def test_a_full_file_refuses_what_adds_and_takes_it_again_when_there_is_room(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j", max_file_bytes=(1 << 18) + (1 << 15)) as database:
        await add(database, "small")
        await add(database, "large", 150_000)
        outcomes = await asyncio.gather(
            *(add(database, f"more{i}", 150_000) for i in range(3)), add(database, "tiny"), return_exceptions=True
        )
        assert [isinstance(outcome, StorageUnavailable) and outcome.full for outcome in outcomes] == [
            True,
            True,
            True,
            False,
        ]
        full_bytes = database.used_bytes
        await database.do(lambda repository: repository.forget("large"))
        assert 100_000 < full_bytes - database.used_bytes < 200_000
        assert await add(database, "again", 150_000) == "again"
        assert await jobs(database) == ["small", "tiny", "again"]


async def test_a_file_that_cannot_be_opened_is_tried_again_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    folder.write_text("in the way")
    async with journal_at(folder / "j") as database:
        for _ in range(2):
            with pytest.raises(StorageUnavailable) as refused:
                await add(database, "early")
            assert not refused.value.full
        folder.unlink()
        assert await add(database, "late") == "late"


async def test_folder_that_is_a_link_to_itself_is_tried_again_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    folder.symlink_to(folder)
    async with journal_at(folder / "j.sqlite3") as database:
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match=str(folder)):
                async with asyncio.timeout(PATIENCE_S):
                    await add(database, "j")
        folder.unlink()
        assert await add(database, "j") == "j"


class UncheckableDataDir(DataDirCheck):
    """A check that fails in a way of its own `failures` times."""

    failures = 2

    def require(self) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("something else")


async def test_unexpected_error_does_not_end_the_thread(tmp_path: Path) -> None:
    """One that is neither of the disk nor of SQLite."""
    database = Database(tmp_path / "jobs" / "j.sqlite3", data_dir=UncheckableDataDir(tmp_path))
    try:
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match="something else"):
                async with asyncio.timeout(PATIENCE_S):
                    await add(database, "j")
        assert await add(database, "j") == "j"
    finally:
        await database.close()


async def test_a_broken_file_is_refused_and_a_mended_one_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "jobs" / "j"
    file.parent.mkdir()
    file.write_bytes(b"no database" * 1000)
    async with journal_at(file) as database:
        with pytest.raises(StorageUnavailable) as refused:
            await add(database, "early")
        assert refused.value.damaged
        assert f"{file} is damaged: move it" in caplog.text
        answer = storage_error(refused.value)
        assert (answer.status, answer.code) == (503, "storage_damaged")
        assert str(file) not in answer.message, "paths are for the operator"
        shutil.rmtree(file.parent)
        assert await add(database, "late") == "late"


async def test_the_files_are_private_and_deleted_prompts_are_gone(tmp_path: Path) -> None:
    file = tmp_path / "jobs" / "j"
    file.parent.mkdir(mode=0o755)
    file.touch(0o644)
    async with journal_at(file) as database:
        spec = JobSpec("/predict", "m", [inputs(prompt="a private prompt")], 0, 1e12, "a", 1.0)
        await database.do(lambda repository: repository.add("one", spec, [], None, 1.0))
        modes = {each.name: each.stat().st_mode & 0o777 for each in (file.parent, *file.parent.iterdir())}
        assert modes == {"jobs": 0o700, "j": 0o600, "j-wal": 0o600, "j-shm": 0o600}
        await database.do(lambda repository: repository.finish("one", JobState.CANCELLED, None, 2.0))
        while await database.do(lambda repository: repository.sweep(RetentionLimits(1e11, 0, 0))):
            pass
        assert await jobs(database) == []
    assert b"a private prompt" not in file.read_bytes()


async def test_a_file_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "j"
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    async with journal_at(file) as database:
        with pytest.raises(StorageUnavailable, match="version"):
            await add(database, "job")


async def test_what_waits_is_written_before_the_file_is_closed(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j") as database:
        waiting = [asyncio.create_task(add(database, f"j{i}")) for i in range(600)]
        await asyncio.sleep(0)
    async with journal_at(tmp_path / "j") as database:
        assert len(await jobs(database)) == len(waiting)
    assert {task.result() for task in waiting} == {f"j{i}" for i in range(600)}


async def test_sweeping_makes_room_by_itself(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j") as database:
        await add(database, "old")
        await database.do(lambda repository: repository.finish("old", JobState.DONE, None, 2.0))
        await add(database, "unfinished")
        sweeping = asyncio.create_task(
            sweep_forever(database, 0.01, lambda now: RetentionLimits(now - 0.01, 1 << 30, 1 << 30))
        )
        async with asyncio.timeout(PATIENCE_S):
            while await database.do(lambda repository: repository.get("old")) is not None:
                await asyncio.sleep(0.01)
        sweeping.cancel()
        assert await jobs(database) == ["unfinished"]


async def test_times_in_the_future_become_now(tmp_path: Path) -> None:
    """The system clock was set back by a day since the job ended and its webhook was due."""
    day_s, hook = 86_400.0, WebhookTarget("http://receiver.example/")
    spec = JobSpec("/predict", "m", [inputs()], 0, 1e12, "a", 1.0, hook=hook)
    async with journal_at(tmp_path / "j") as database:
        await database.do(lambda repository: repository.add("past", spec, [], None, 1.0))
        await database.do(lambda repository: repository.add("future", spec, [], None, 1.0))
        await database.do(lambda repository: repository.finish("past", JobState.DONE, None, 5.0))
        await database.do(lambda repository: repository.finish("future", JobState.DONE, None, 10.0 + day_s))
        await database.do(lambda repository: repository.deliveries.attempted("past", 10.0 + MAX_PAUSE_S, None))
        await database.do(lambda repository: repository.bound_times(10.0))
        due = await database.do(lambda repository: repository.deliveries.due(10.0))
        assert [each.job for each in due] == ["future"], "the other is a pause that may be"
        for job, ended in (("past", 5.0), ("future", 10.0)):
            record = await database.do(partial(Repository.get, job=job))
            assert record is not None
            assert record.ended == ended


async def test_keys_mean_one_request_each(tmp_path: Path) -> None:
    first, other = IdempotencyKey("a", "k", b"1"), IdempotencyKey("a", "k", b"2")
    answer = StoredResponse(200, "application/json", b"{}")
    async with journal_at(tmp_path / "j") as database:
        assert await database.do(lambda repository: repository.recall(first)) is None
        await database.do(lambda repository: repository.remember(first, answer, 1.0))
        await database.do(lambda repository: repository.remember(first, answer._replace(body=b"late"), 2.0))
        assert await database.do(lambda repository: repository.recall(first)) == answer
        assert await database.do(lambda repository: repository.recall(first._replace(owner="b"))) is None
        for work in (
            lambda repository: repository.recall(other),
            lambda repository: repository.add("j", order(), [], other, 1.0),
        ):
            with pytest.raises(IdempotencyKeyReused):
                await database.do(work)


async def test_nothing_is_written_without_the_data_dir(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    database = Database(root / "jobs" / "j.sqlite3", data_dir=DataDirCheck(root))
    assert await add(database, "kept") == "kept"
    root.rename(elsewhere)
    for _ in range(2):
        with pytest.raises(StorageUnavailable, match=f"the data directory {root} was removed") as raised:
            await add(database, "refused")
        answer = storage_error(raised.value)
        assert (answer.status, answer.body.error.code) == (503, "storage_unavailable")
        assert "the data directory of the server was removed" in answer.body.error.message
        assert not root.exists(), "an empty one would be taken for the real one"
    elsewhere.rename(root)
    assert await jobs(database) == ["kept"]
    await database.close()


@pytest.mark.parametrize("suffixes", [("",), ("", "-wal", "-shm")])
async def test_removed_database_file_is_made_again(tmp_path: Path, suffixes: tuple[str, ...]) -> None:
    file = tmp_path / "j.sqlite3"
    async with journal_at(file) as database:
        await add(database, "before")
        for suffix in suffixes:
            file.with_name(f"{file.name}{suffix}").unlink()
        await add(database, "after")
        with contextlib.closing(sqlite3.connect(file)) as other:
            assert "after" in [job for (job,) in other.execute("SELECT id FROM jobs")]
