"""Tells webhooks the ends of jobs, until they are received or given up. What is still to be told stands on disk.

A message goes to the very address that was looked at: the check is made on the address that a socket is opened for, so
a name that answers differently the second time gains nothing. Redirects are not followed, proxies not used, and the
answer's body is not read.
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

_AT_ONCE = 16
#: Longest pause between two looks at what is due: clocks are set now and then.
_MAX_POLL_S = 30.0


class NotPublic(OSError):
    """The address is of this machine or of a network around it, where messages are not to go."""


class WebhookSender:
    """Sends what is due. All methods are called in the event loop."""

    def __init__(self, settings: JobSettings, database: Database) -> None:
        self._settings = settings
        self._database = database
        #: Sums since the start: messages by what became of them.
        self.counters: Counter[str] = Counter()
        self._wake_event = asyncio.Event()
        self._rounds: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, with what an earlier life left."""
        self._rounds = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop at once: what was under way is sent again by the next start."""
        if self._rounds is not None:
            self._rounds.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._rounds

    def wake(self) -> None:
        """Something new is due."""
        self._wake_event.set()

    async def _run(self) -> None:
        connector = aiohttp.TCPConnector(
            force_close=True, use_dns_cache=False, limit=_AT_ONCE, socket_factory=self._open_socket
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
        """Send what is due; gives the seconds until more is."""
        try:
            now = time.time()
            due = await self._database.do(lambda repository: repository.due(now, _AT_ONCE))
            await asyncio.gather(*(self._deliver(session, record, attempts) for record, attempts in due))
            following = await self._database.do(lambda repository: repository.next_due())
        except StorageUnavailable:
            return 1.0
        return _MAX_POLL_S if following is None else min(max(following - time.time(), 0.0), _MAX_POLL_S)

    async def _deliver(self, session: aiohttp.ClientSession, record: JobRecord, attempts: int) -> None:
        """One attempt, and what came of it on disk. Raises `StorageUnavailable`."""
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
        """Why the message was not received; None if it was. Its address may hold a secret, and is not in the text."""
        hook = record.order.hook
        assert hook is not None
        body = msgspec.json.encode(job_view(record, None, self._settings.keep_s))
        told = headers(record.id, hook.secret, body, time.time())
        try:
            async with session.post(hook.url, data=body, headers=told, allow_redirects=False) as answered:
                return None if 200 <= answered.status < 300 else f"the answer was {answered.status}"
        except TimeoutError:
            return f"no answer in {self._settings.webhook_timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return type(error).__name__

    def _open_socket(self, address: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        """A socket for the address that is about to be connected to. Raises `NotPublic`."""
        family, kind, protocol, _, place = address
        if not self._settings.webhook_private and not is_public(ipaddress.ip_address(place[0].partition("%")[0])):
            raise NotPublic("the address is private")
        return socket.socket(family, kind, protocol)
