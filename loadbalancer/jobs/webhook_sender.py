"""Delivers webhooks with retries. Pending deliveries are stored on disk, and `DeliveryQueue` decides their order."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import msgspec

from configs.sections import Jobs as JobSettings
from loadbalancer.background_tasks import TaskSupervisor
from loadbalancer.jobs.delivery_queue import DeliveryQueue
from loadbalancer.jobs.job_context import job_trace
from loadbalancer.jobs.views import job_view
from loadbalancer.jobs.webhooks import headers, pause_s
from loadbalancer.storage.database import Database, StorageUnavailable, Work
from loadbalancer.storage.records import JobRecord, PendingDelivery, WebhookTarget
from loadbalancer.tracing.attributes import JOB
from loadbalancer.tracing.tracer import Tracer, new_span_id

if TYPE_CHECKING:
    from loadbalancer.jobs.webhook_client import WebhookClient

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Limits of the pause between two checks; the upper one because the wall clock can be set.
_MIN_POLL_S, _MAX_POLL_S = 0.05, 30.0
_STORAGE_RETRY_S = 1.0


class WebhookSender:
    """Delivers the due webhooks. All methods are called in the event loop."""

    def __init__(self, settings: JobSettings, database: Database, tracer: Tracer | None = None) -> None:
        self._settings = settings
        self._tracer = tracer
        self._database = database
        #: Deliveries by outcome since the start.
        self.counters: Counter[str] = Counter()
        self._wake_event = asyncio.Event()
        self._queue = DeliveryQueue(settings.webhook_concurrency)
        self._supervisor = TaskSupervisor()
        self._client: WebhookClient | None = None
        #: True if deliveries may be due that have not been read.
        self._is_stale = True
        #: Time of the next check, in Unix seconds.
        self._next_check = 0.0

    def start(self) -> None:
        self._supervisor.run_forever("webhooks", self._run)

    async def stop(self) -> None:
        """Stop at once; the next start repeats interrupted deliveries."""
        await self._supervisor.stop()
        if self._client is not None:
            await self._client.close()

    def wake(self) -> None:
        """Check for due deliveries now."""
        self._is_stale = True
        self._wake_event.set()

    @property
    def task_failures(self) -> Counter[str]:
        """Unexpected failures since the start, by name of the task."""
        return self._supervisor.failures

    async def _run(self) -> None:
        while True:
            self._wake_event.clear()
            wait_s = await self._start_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):  # `wait_for` may lose a cancellation
                    await self._wake_event.wait()
            await asyncio.sleep(_MIN_POLL_S)

    async def _start_due(self) -> float:
        """Start the due deliveries for which there is room. Returns the seconds until the next check."""
        now = time.time()
        if self._is_stale or now >= self._next_check or not self._start_pending():
            self._is_stale = False
            due, following = await self._do(
                lambda repository: (repository.deliveries.due(now), repository.deliveries.next_due(now))
            )
            self._queue.replace_pending(due)
            self._next_check = min(now + _MAX_POLL_S, following or float("inf"))
            self._start_pending()
        return max(self._next_check - time.time(), 0.0)

    def _start_pending(self) -> int:
        started = 0
        while (delivery := self._queue.start_next()) is not None:
            self._supervisor.run_to_completion("webhook", self._deliver(delivery))
            started += 1
        return started

    async def _deliver(self, delivery: PendingDelivery) -> None:
        """Make one attempt and store its outcome. An unexpected failure gives this webhook up, and no other."""
        attempts = delivery.attempts + 1
        try:
            try:
                failed, is_final = await self._attempt(delivery.job)
            except Exception as error:
                self._supervisor.record_failure("webhook", error, time.monotonic())
                failed, is_final = "an internal error", True
            again = failed is not None and not is_final and attempts < self._settings.webhook_attempts
            await self._store_outcome(delivery.job, attempts, failed, again=again)
        finally:
            self._queue.finish(delivery)
            self._wake_event.set()

    async def _attempt(self, job: str) -> tuple[str | None, bool]:
        """Return why the delivery failed, None after a success, and whether this is final."""
        record = await self._do(lambda repository: repository.get(job))
        if record is None:
            return "the job was deleted", True
        if record.order.hook is None:
            return "the job cannot be read", True
        return await self._post(record, record.order.hook), False

    async def _store_outcome(self, job: str, attempts: int, failed: str | None, *, again: bool) -> None:
        now = time.time()
        due = now + pause_s(attempts, self._settings.webhook_retry_s) if again else None
        self.counters["webhooks_" + ("delivered" if failed is None else "failed" if again else "given_up")] += 1
        if failed is not None:
            next_step = f"again in {due - now:.0f} s" if due is not None else "given up"
            log.warning("webhook of %s: attempt %d: %s; %s", job, attempts, failed, next_step)
        await self._do(lambda repository: repository.deliveries.attempted(job, due, None if failed else now))
        if due is not None:
            self._next_check = min(self._next_check, due)

    async def _do(self, work: Work[Result]) -> Result:
        """Do the work; retry until the disk is available."""
        while True:
            try:
                return await self._database.do(work)
            except StorageUnavailable:
                await asyncio.sleep(_STORAGE_RETRY_S)

    async def _post(self, record: JobRecord, hook: WebhookTarget) -> str | None:
        """Return why the delivery failed; None after a success."""
        body = msgspec.json.encode(job_view(record, None, self._settings.keep_s))
        client, started = await self._open_client(), time.time()
        signed = dict(headers(record.id, hook.secret, body, started))
        job = job_trace(record)
        if job is None or self._tracer is None:
            passed_on = {"traceparent": record.order.traceparent} if record.order.traceparent else {}
            return await client.post(hook.url, body, signed | passed_on)
        trace = job.child(new_span_id())
        failed = await client.post(hook.url, body, signed | {"traceparent": trace.traceparent})
        ended, error = max(time.time(), started), "" if failed is None else "webhook_failed"
        self._tracer.end_span(trace, "webhook", "client", started, ended, {JOB: record.id}, error)
        return failed

    async def _open_client(self) -> WebhookClient:
        """Return the client. Its library is imported at the first delivery, in a thread: many servers send none."""
        if self._client is None:
            await asyncio.to_thread(importlib.import_module, "loadbalancer.jobs.webhook_client")
            from loadbalancer.jobs.webhook_client import WebhookClient

            self._client = self._client or WebhookClient(self._settings)
        return self._client
