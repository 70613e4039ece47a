"""Runs admitted jobs to their ends: images and outcome are stored first, and then published."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from loadbalancer.context.request_context import CURRENT
from loadbalancer.jobs.job_run import JobRun
from loadbalancer.jobs.views import expired
from loadbalancer.scheduling.task import QueueFull
from loadbalancer.schema.errors import InternalError
from loadbalancer.storage.database import Database, StorageUnavailable, Work
from loadbalancer.storage.records import Failure, JobRecord, JobState
from loadbalancer.storage.repository import Repository

log = logging.getLogger(__name__)

Result = TypeVar("Result")
#: Pause before a retry of the disk or of a full queue.
_RETRY_S = 0.5


class JobRunner:
    """Brings jobs from the database into the scheduler's queue, and their results back."""

    def __init__(
        self, database: Database, counters: Counter[str], resumed: asyncio.Event, close: Callable[[JobRun], None]
    ) -> None:
        """`counters` get the outcomes. `resumed` is set once no earlier job may still run unknown on a worker.

        `close` is called at the end of each job.
        """
        self._database = database
        self._counters = counters
        self._resumed = resumed
        self._close = close

    async def run(self, run: JobRun) -> None:
        """Run an admitted job to its end. A job that cannot be handled fails, and leaves no trace in the queues."""
        CURRENT.set(run.context)  # of this task of asyncio, not of the request that has started it
        try:
            await self._run_to_end(run)
        except Exception:
            error, job, now = InternalError("The job failed because of an internal error."), run.record.id, time.time()
            failure = Failure(error.status, error.body.error)
            run.fail(error)
            try:
                await self.store_with_retries(lambda repository: repository.finish(job, JobState.FAILED, failure, now))
                self._counters["jobs_failed"] += 1
            finally:
                self._close(run)
            raise  # the supervisor logs and counts it
        self._close(run)

    async def _run_to_end(self, run: JobRun) -> None:
        if run.failure is None:
            try:
                await self._enter(run)
            except Exception:  # a bug or a damaged file; the client still gets an end
                log.exception("job %s cannot be queued", run.record.id)
                run.fail(InternalError("The job could not be started because of an internal error."))
        run.mark_entered()
        while not run.is_finished:
            await run.wait_changed()
            if not run.is_finished:
                await self._persist(run)
        await self._persist(run)

    async def _enter(self, run: JobRun) -> None:
        job = run.record.id
        sources, stored, checkpoints = await self.store_with_retries(
            lambda repository: (repository.sources(job), repository.images(job), repository.checkpoints(job))
        )
        while True:
            timeout_s = run.expires_at - time.monotonic()
            if timeout_s <= 0:
                run.fail(expired(run.record))
                return None
            try:
                may_be_running = run.record.started is not None and not self._resumed.is_set()
                return run.enter(sources, stored, checkpoints, timeout_s, may_be_running=may_be_running)
            except QueueFull:  # filled by requests that are not jobs
                await asyncio.sleep(_RETRY_S)

    async def _persist(self, run: JobRun) -> None:
        """Store the new images, and the end of the job once it is finished."""
        unsaved = run.take_unsaved()
        failure, finished, started, now = run.failure, run.is_finished, run.started, time.time()
        job = run.record.id

        def work(repository: Repository) -> JobRecord | None:
            if started:
                repository.started(job, now)
            for image in unsaved:
                repository.keep(job, image)
            if failure is not None:
                return repository.finish(job, JobState.FAILED, Failure(failure.status, failure.body.error), now)
            return repository.finish(job, JobState.DONE, None, now) if finished else None

        end = await self.store_with_retries(work)
        if end is not None:
            self._counters[f"jobs_{end.state.value}"] += 1
        for subscriber in run.subscribers:
            subscriber.add_items([image.item for image in unsaved])

    async def store_with_retries(self, work: Work[Result]) -> Result:
        """Do the work; retry until the disk is available."""
        while True:
            try:
                return await self._database.do(work)
            except StorageUnavailable:
                self._resumed.set()  # the start does not wait for the disk
                await asyncio.sleep(_RETRY_S)
