"""Deliveries to real receivers on the loopback address, some of which never answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from configs.sections import Jobs
from loadbalancer.jobs.webhook_sender import WebhookSender
from loadbalancer.storage.database import Database
from loadbalancer.storage.records import JobSpec, JobState, WebhookTarget
from loadbalancer.storage.repository import Repository
from tests.support.in_process_service import inputs
from tests.support.waiting import until

SETTINGS = Jobs(webhook_private=True, webhook_timeout_s=2.0, webhook_attempts=1, webhook_concurrency=4)


class Receiver:
    """A receiver of webhooks: it answers 204, or never."""

    def __init__(self, *, answers: bool) -> None:
        self._answers = answers
        self.connections = 0
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            if not self._answers:
                await reader.read()
            writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def receiver(*, answers: bool = True) -> AsyncIterator[Receiver]:
    made = Receiver(answers=answers)
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


@contextlib.asynccontextmanager
async def sender(folder: Path, settings: Jobs = SETTINGS) -> AsyncIterator[tuple[WebhookSender, Database]]:
    database = Database(folder / "jobs.sqlite3")
    made = WebhookSender(settings, database)
    try:
        yield made, database
    finally:
        await made.stop()
        await database.close()


async def end_job(database: Database, job: str, owner: str, url: str, ended: float) -> None:
    spec = JobSpec("/predict", "m", [inputs()], 0, 1e12, owner, 1.0, hook=WebhookTarget(url))

    def work(repository: Repository) -> None:
        repository.add(job, spec, [], None, 1.0)
        repository.finish(job, JobState.DONE, None, ended)

    await database.do(work)


async def test_slow_receivers_of_one_owner_hold_up_nobody_else(tmp_path: Path) -> None:
    async with (
        contextlib.AsyncExitStack() as stack,
        receiver() as good,
        sender(tmp_path) as (webhooks, database),
    ):
        slow = [await stack.enter_async_context(receiver(answers=False)) for _ in range(8)]
        for number in range(32):
            url = f"http://127.0.0.1:{slow[number % 8].port}/"
            await end_job(database, f"slow{number}", "mallory", url, 1.0 + number)
        webhooks.start()
        await until(lambda: sum(each.connections for each in slow) == SETTINGS.webhook_concurrency)
        await end_job(database, "good", "bob", f"http://127.0.0.1:{good.port}/", 100.0)
        webhooks.wake()
        await until(lambda: webhooks.counters["webhooks_delivered"])
        assert good.connections == 1
        assert webhooks.counters["webhooks_given_up"] == 0, "none of the slow ones has ended before"


async def test_a_slow_host_holds_up_no_other_host_of_its_owner(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"webhook_concurrency": 8})
    async with receiver(answers=False) as slow, receiver() as good, sender(tmp_path, settings) as (webhooks, database):
        for number in range(40):
            await end_job(database, f"slow{number}", "bob", f"http://127.0.0.1:{slow.port}/", 1.0 + number)
        await end_job(database, "good", "bob", f"http://127.0.0.1:{good.port}/", 100.0)
        webhooks.start()
        await until(lambda: webhooks.counters["webhooks_delivered"])
        assert webhooks.counters["webhooks_given_up"] == 0


async def test_each_attempt_ends_within_its_time(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"webhook_timeout_s": 0.2})
    async with receiver(answers=False) as slow, sender(tmp_path, settings) as (webhooks, database):
        for number in range(12):
            await end_job(database, f"slow{number}", "bob", f"http://127.0.0.1:{slow.port}/", 1.0 + number)
        webhooks.start()
        await until(lambda: webhooks.counters["webhooks_given_up"] == 12)


@pytest.mark.parametrize("change", ["asked = '{}'", "state = 'paused'", "created = 'yesterday'"])
async def test_a_damaged_job_is_given_up_and_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    async with receiver() as good, sender(tmp_path) as (webhooks, database):
        url = f"http://127.0.0.1:{good.port}/"
        await end_job(database, "damaged", "bob", url, 1.0)
        await database.do(lambda repository: repository._db.execute(f"UPDATE jobs SET {change}").close())
        webhooks.start()
        with caplog.at_level(logging.WARNING):
            await until(lambda: webhooks.counters["webhooks_given_up"] == 1)
        assert "webhook of damaged: attempt 1: the job cannot be read; given up" in caplog.text
        await end_job(database, "good", "bob", url, 2.0)
        webhooks.wake()
        await until(lambda: webhooks.counters["webhooks_delivered"] == 1)
        assert good.connections == 1


async def test_an_unexpected_failure_ends_neither_the_loop_nor_others(tmp_path: Path) -> None:
    async with receiver() as good, sender(tmp_path) as (webhooks, database):
        await end_job(database, "odd", "bob", "http://[::1", 1.0)  # no program of ours stores such a URL
        await end_job(database, "good", "bob", f"http://127.0.0.1:{good.port}/", 2.0)
        webhooks.start()
        await until(lambda: webhooks.counters["webhooks_delivered"] == 1)
        await until(lambda: webhooks.counters["webhooks_given_up"] == 1)


async def test_a_host_name_without_an_address_is_a_failed_attempt(tmp_path: Path) -> None:
    async with receiver() as good, sender(tmp_path) as (webhooks, database):
        await end_job(database, "lost", "bob", "http://no-such-host.invalid/", 1.0)
        await end_job(database, "good", "bob", f"http://localhost:{good.port}/", 2.0)
        webhooks.start()
        await until(lambda: webhooks.counters["webhooks_delivered"] == 1)
        await until(lambda: webhooks.counters["webhooks_given_up"] == 1)
