"""Delivers webhooks with retries. Pending deliveries are stored on disk.

The address check applies to the address that the socket connects to, which prevents DNS rebinding. Redirects are not
followed, proxies are not used, and response bodies are not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import time
from collections import Counter
from typing import Any

import aiohttp
import msgspec

from configs.sections import Jobs as JobSettings
from loadbalancer.jobs.views import job_view
from loadbalancer.jobs.webhooks import headers, is_public, pause_s
from loadbalancer.storage.database import Database, StorageUnavailable
from loadbalancer.storage.records import JobRecord

log = logging.getLogger(__name__)

_MAX_CONCURRENT = 16
#: Limit of the pause between two polls, because the wall clock can be set.
_MAX_POLL_S = 30.0


class NotPublic(OSError):
    """The address belongs to this machine or a private network."""


class WebhookSender:
    """Delivers the due webhooks. All methods are called in the event loop."""

    def __init__(self, settings: JobSettings, database: Database) -> None:
        self._settings = settings
        self._database = database
        #: Deliveries by outcome since the start.
        self.counters: Counter[str] = Counter()
        self._wake_event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop at once; the next start repeats interrupted deliveries."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """Check for due deliveries now."""
        self._wake_event.set()

    async def _run(self) -> None:
        connector = aiohttp.TCPConnector(
            force_close=True, use_dns_cache=False, limit=_MAX_CONCURRENT, socket_factory=self._open_socket
        )
        timeout = aiohttp.ClientTimeout(total=self._settings.webhook_timeout_s)
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=jar) as session:
            while True:
                self._wake_event.clear()
                wait_s = await self._round(session)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake_event.wait(), wait_s)

    async def _round(self, session: aiohttp.ClientSession) -> float:
        """Deliver what is due. Returns the seconds until the next check."""
        try:
            now = time.time()
            due = await self._database.do(lambda repository: repository.due(now, _MAX_CONCURRENT))
            await asyncio.gather(*(self._deliver(session, record, attempts) for record, attempts in due))
            following = await self._database.do(lambda repository: repository.next_due())
        except StorageUnavailable:
            return 1.0
        return _MAX_POLL_S if following is None else min(max(following - time.time(), 0.0), _MAX_POLL_S)

    async def _deliver(self, session: aiohttp.ClientSession, record: JobRecord, attempts: int) -> None:
        """Make one attempt and store its outcome. Raises `StorageUnavailable`."""
        failed = await self._post(session, record)
        attempts, now = attempts + 1, time.time()
        again = failed is not None and attempts < self._settings.webhook_attempts
        due = now + pause_s(attempts, self._settings.webhook_retry_s) if again else None
        self.counters["webhooks_" + ("delivered" if failed is None else "failed" if again else "given_up")] += 1
        if failed is not None:
            what = f"again in {due - now:.0f} s" if due is not None else "given up"
            log.warning("webhook of %s: attempt %d: %s; %s", record.id, attempts, failed, what)
        await self._database.do(lambda repository: repository.attempted(record.id, due, None if failed else now))

    async def _post(self, session: aiohttp.ClientSession, record: JobRecord) -> str | None:
        """Return why the delivery failed; None after a success. The text omits the URL, which may hold a secret."""
        hook = record.order.hook
        assert hook is not None
        body = msgspec.json.encode(job_view(record, None, self._settings.keep_s))
        signed = headers(record.id, hook.secret, body, time.time())
        try:
            async with session.post(hook.url, data=body, headers=signed, allow_redirects=False) as response:
                return None if 200 <= response.status < 300 else f"the status was {response.status}"
        except TimeoutError:
            return f"no response in {self._settings.webhook_timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return type(error).__name__

    def _open_socket(self, address: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        """Open a socket for the resolved address. Raises `NotPublic`."""
        family, kind, protocol, _, target = address
        if not self._settings.webhook_private and not is_public(ipaddress.ip_address(target[0].partition("%")[0])):
            raise NotPublic("the address is private")
        return socket.socket(family, kind, protocol)
