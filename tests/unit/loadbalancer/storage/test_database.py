"""The thread that writes: what it promises of a commit, and what it does when the disk takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadbalancer.storage.database import Journal, Unwritable, sweep_forever
from loadbalancer.storage.records import Answer, JobState, Key, Order, Reused
from loadbalancer.storage.repository import MIGRATIONS, Ledger
from tests.support.in_process_service import inputs


def order(owner: str = "a", deadline: float = 1e12) -> Order:
    return Order("/predict", "m", [inputs()], 0, deadline, owner, 1.0)


@contextlib.asynccontextmanager
async def journal_at(file: Path, max_file_bytes: int | None = None) -> AsyncIterator[Journal]:
    journal = Journal(file, max_file_bytes)
    try:
        yield journal
    finally:
        await journal.close()


async def add(journal: Journal, job: str, size: int = 0) -> str:
    record = await journal.do(lambda ledger: ledger.add(job, order(), [bytes(size)] if size else [], None, 1.0))
    return record.id


async def jobs(journal: Journal) -> list[str]:
    return [record.id for record in await journal.do(Ledger.unfinished)]


async def test_what_was_acknowledged_is_there_for_whoever_opens_the_file(tmp_path: Path) -> None:
    file = tmp_path / "jobs" / "j.sqlite3"
    async with journal_at(file) as journal:
        assert await asyncio.gather(*(add(journal, f"j{i}") for i in range(50))) == [f"j{i}" for i in range(50)]
        with contextlib.closing(sqlite3.connect(file)) as other:  # before it is closed: a crash would find as much
            assert other.execute("SELECT count(*) FROM jobs").fetchone() == (50,)
            assert other.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert file.parent.stat().st_mode & 0o077 == 0, "prompts are nobody else's business"
    async with journal_at(file) as journal:
        assert await jobs(journal) == [f"j{i}" for i in range(50)]


async def test_a_piece_that_fails_is_undone_alone(tmp_path: Path) -> None:
    def broken(ledger: Ledger) -> None:
        ledger.add("half", order(), [], None, 1.0)
        raise ValueError("on purpose")

    def wrong(ledger: Ledger) -> None:
        ledger.add("half", order(), [], None, 1.0)
        ledger._db.execute("SELECT * FROM nowhere")

    async with journal_at(tmp_path / "j") as journal:
        outcomes = await asyncio.gather(
            add(journal, "before"), journal.do(broken), journal.do(wrong), add(journal, "after"), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [str, ValueError, Unwritable, str]
        assert await jobs(journal) == ["before", "after"]


async def test_whoever_stops_waiting_harms_nobody(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j") as journal:
        gone = asyncio.create_task(add(journal, "gone"))
        await asyncio.sleep(0)
        gone.cancel()
        await add(journal, "stays")
        assert await jobs(journal) == ["gone", "stays"]


async def test_a_full_file_refuses_what_adds_and_takes_it_again_when_there_is_room(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j", max_file_bytes=1 << 18) as journal:
        await add(journal, "small")
        await add(journal, "large", 150_000)
        outcomes = await asyncio.gather(
            *(add(journal, f"more{i}", 150_000) for i in range(3)), add(journal, "tiny"), return_exceptions=True
        )
        assert [isinstance(outcome, Unwritable) and outcome.full for outcome in outcomes] == [True, True, True, False]
        await journal.do(lambda ledger: ledger.forget("large"))
        assert await add(journal, "again", 150_000) == "again"
        assert await jobs(journal) == ["small", "tiny", "again"]


async def test_a_file_that_cannot_be_opened_is_tried_again_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    folder.write_text("in the way")
    async with journal_at(folder / "j") as journal:
        for _ in range(2):
            with pytest.raises(Unwritable) as refused:
                await add(journal, "early")
            assert not refused.value.full
        folder.unlink()
        assert await add(journal, "late") == "late"


async def test_a_broken_file_is_refused_and_a_mended_one_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "jobs" / "j"
    file.parent.mkdir()
    file.write_bytes(b"no database" * 1000)
    async with journal_at(file) as journal:
        with pytest.raises(Unwritable):
            await add(journal, "early")
        shutil.rmtree(file.parent)
        assert await add(journal, "late") == "late"


async def test_a_file_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "j"
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    async with journal_at(file) as journal:
        with pytest.raises(Unwritable, match="version"):
            await add(journal, "job")


async def test_what_waits_is_written_before_the_file_is_closed(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j") as journal:
        waiting = [asyncio.create_task(add(journal, f"j{i}")) for i in range(600)]
        await asyncio.sleep(0)
    async with journal_at(tmp_path / "j") as journal:
        assert len(await jobs(journal)) == len(waiting)
    assert {task.result() for task in waiting} == {f"j{i}" for i in range(600)}


async def test_sweeping_makes_room_by_itself(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "j") as journal:
        await add(journal, "old")
        await journal.do(lambda ledger: ledger.finish("old", JobState.DONE, None, 2.0))
        await add(journal, "unfinished")
        sweeping = asyncio.create_task(sweep_forever(journal, 0.01, 1 << 30))
        async with asyncio.timeout(30):
            while await journal.do(lambda ledger: ledger.get("old")) is not None:
                await asyncio.sleep(0.01)
        sweeping.cancel()
        assert await jobs(journal) == ["unfinished"]


async def test_keys_mean_one_request_each(tmp_path: Path) -> None:
    first, other = Key("a", "k", b"1"), Key("a", "k", b"2")
    answer = Answer(200, "application/json", b"{}")
    async with journal_at(tmp_path / "j") as journal:
        assert await journal.do(lambda ledger: ledger.recall(first)) is None
        await journal.do(lambda ledger: ledger.remember(first, answer, 1.0))
        await journal.do(lambda ledger: ledger.remember(first, answer._replace(body=b"late"), 2.0))
        assert await journal.do(lambda ledger: ledger.recall(first)) == answer
        assert await journal.do(lambda ledger: ledger.recall(first._replace(owner="b"))) is None
        for work in (lambda ledger: ledger.recall(other), lambda ledger: ledger.add("j", order(), [], other, 1.0)):
            with pytest.raises(Reused):
                await journal.do(work)
