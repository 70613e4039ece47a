"""Runs durable jobs from the database through the scheduler and back, across restarts.

A job is on disk before it is acknowledged, and an image before it is published. The end of a job is written once; a
later one is dropped. `JobAdmission` decides which job enters the scheduler's queue next. After a restart each image
resumes from its last checkpoint. While the disk is unavailable, finished images stay in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from configs.settings import Settings
from loadbalancer.background_tasks import TaskSupervisor
from loadbalancer.jobs.job_queue import JobAdmission
from loadbalancer.jobs.job_quota import JobQuota
from loadbalancer.jobs.job_run import JobRun, JobSubscriber
from loadbalancer.jobs.job_runner import JobRunner
from loadbalancer.jobs.views import JobProgress, JobView, cancelled, expired, job_view, missing_result_error
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.schema.errors import Conflict, shutting_down
from loadbalancer.storage.database import Database, StorageUnavailable, sweep_forever
from loadbalancer.storage.records import (
    IdempotencyKey,
    JobPage,
    JobRecord,
    JobSpec,
    JobState,
    RetentionLimits,
    StoredImage,
)
from loadbalancer.storage.repository import Repository
from loadbalancer.tracing.tracer import Tracer

log = logging.getLogger(__name__)

_EXPIRY_CHECK_S = 1.0
#: Limit of the wait for unfinished jobs at startup.
_RESUME_S = 5.0


class JobManager:
    """All unfinished jobs. All methods are called in the event loop."""

    def __init__(
        self,
        settings: Settings,
        scheduler: SchedulerService,
        database: Database,
        on_end: Callable[[], None] = lambda: None,
        tracer: Tracer | None = None,
    ) -> None:
        """`on_end` is called when a job with a webhook ends."""
        self._settings = settings.jobs
        self._results = settings.results
        self._admission = JobAdmission(
            settings.models, max(int(settings.queue.max_tasks * settings.jobs.queue_share), 1)
        )
        self._scheduler = scheduler
        self._database = database
        self._runs: dict[str, JobRun] = {}
        self._models = settings.models
        self._quota = JobQuota(settings.jobs)
        #: Jobs by outcome since the start.
        self.counters: Counter[str] = Counter()
        self._supervisor = TaskSupervisor()
        self._stopped = False
        #: Set once the unfinished jobs have been resumed, or the disk is unavailable.
        self._resumed = asyncio.Event()
        self._runner = JobRunner(database, self.counters, self._resumed, self._close)
        self._on_end = on_end
        self._tracer = tracer

    def __repr__(self) -> str:
        return f"<JobManager {len(self)} unfinished, {self._admission!r}>"

    @property
    def task_failures(self) -> Counter[str]:
        """Unexpected failures since the start, by name of the background task."""
        return self._supervisor.failures

    def __len__(self) -> int:
        return len(self._runs)

    async def start(self) -> None:
        """Start the background tasks and resume the unfinished jobs.

        Call it before workers connect: the tasks that they still run must be known by then.
        """
        for name, loop in (
            ("jobs_resume", self._resume),
            ("jobs_expire", self._expire_waiting),
            ("jobs_save", self._save),
            ("jobs_sweep", self._sweep),
        ):
            self._supervisor.run_forever(name, loop)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._resumed.wait(), _RESUME_S)
        self._resumed.set()

    async def stop(self) -> None:
        """Save checkpoints and cancel all tasks; the next start resumes the jobs.

        Jobs that are accepted after this call are only stored.
        """
        self._stopped = True
        await self._supervisor.stop()
        await self._save_now()
        for run in self._runs.values():
            run.leave()
            for subscriber in run.subscribers:
                subscriber.end(shutting_down())

    # ---- used by the routes

    async def add(
        self,
        order: JobSpec,
        sources: Sequence[bytes],
        key: IdempotencyKey | None,
        on_end: Callable[[int], None] | None = None,
    ) -> JobView:
        """Accept the job and store it. With a known idempotency key, the view is of the job stored with that key.

        `on_end` is called with the tokens that the job has taken: 0 if it is not accepted.
        Raises `IdempotencyKeyReused`, `StorageUnavailable` and `TooBusy`.
        """
        size = sum(map(len, sources))
        job, now, full = f"job_{uuid.uuid4().hex}", time.time(), self._quota.refusal(order.owner, size)
        if full is None:  # until the job is stored: many may arrive at once
            self._quota.reserve(order.owner, size)

        def work(repository: Repository) -> JobRecord:
            if full is not None and (key is None or repository.job_of(key) is None):
                raise full
            return repository.add(job, order, sources, key, now)

        record: JobRecord | None = None
        try:
            record = await self._database.do(work)
        finally:
            if full is None:
                self._quota.release(order.owner, size)
            if on_end is not None and (record is None or record.id != job):
                on_end(0)
        if record.id == job:
            self.counters["jobs_accepted"] += 1
            self._add_run(record, size, on_end)
        return self.view(record)

    async def known(self, key: IdempotencyKey) -> JobView | None:
        """Return the job stored with the key, or None. Raises `IdempotencyKeyReused` and `StorageUnavailable`."""
        record = await self._database.do(lambda repository: repository.job_of(key))
        return None if record is None else self.view(record)

    async def find(self, job: str, owner: str) -> JobRecord | None:
        """Return the owner's job, or None. Raises `StorageUnavailable`."""
        return await self._database.do(lambda repository: repository.get(job, owner))

    async def image(self, job: str, item: int) -> StoredImage | None:
        """Return a finished image; None if it was deleted. Raises `StorageUnavailable`."""
        return await self._database.do(lambda repository: repository.image(job, item))

    async def page(self, owner: str, limit: int, after: str | None, state: JobState | None) -> JobPage:
        """See `Repository.page`. Raises `StorageUnavailable`."""
        return await self._database.do(lambda repository: repository.page(owner, limit, after, state))

    async def discard(self, job: str, owner: str) -> JobRecord | None:
        """Cancel the owner's job, or delete an ended one. Returns its final record. Raises `StorageUnavailable`."""
        now = time.time()

        def work(repository: Repository) -> JobRecord | None:
            record = repository.get(job, owner)
            if record is None or record.ended is None:
                return record and repository.finish(job, JobState.CANCELLED, None, now)
            repository.forget(job)
            return record

        record = await self._database.do(work)
        run = self._runs.get(job)
        if record is not None and run is not None:
            run.fail(cancelled())
            self.counters["jobs_cancelled"] += 1
            if run.task is not None:
                run.task.cancel()
            self._close(run)
        return record

    def view(self, record: JobRecord) -> JobView:
        run = self._runs.get(record.id)
        return job_view(record, None if run is None or record.ended is not None else self._progress(run), self.keep_s)

    async def subscribe(self, job: str, owner: str) -> JobSubscriber | None:
        """Subscribe to the results of the owner's job; None if there is no such job. Raises `StorageUnavailable`."""

        def work(repository: Repository) -> tuple[JobRecord | None, list[int]]:
            record = repository.get(job, owner)
            return record, [] if record is None else repository.finished_items(job)

        record, items = await self._database.do(work)
        # No await from here on: an image that is stored later is published to the subscriber.
        return None if record is None else self._subscriber(record, items)

    def _subscriber(self, record: JobRecord, items: Sequence[int]) -> JobSubscriber:
        if record.ended is None and record.readable:
            self._add_run(record, 0)  # right after a start the job may not have been resumed yet
        run = self._runs.get(record.id)
        load = partial(self.image, record.id)
        if run is None:
            subscriber = JobSubscriber(record.order, lambda: iter(()), load, lambda _: None)
            subscriber.add_items(items)
            subscriber.end(missing_result_error(record) if record.ended is not None else shutting_down())
            return subscriber
        subscriber = JobSubscriber(
            record.order,
            lambda: run.waiting_progress(self._progress(run).position) if run.task is None else run.image_progress(),
            load,
            run.subscribers.discard,
            lambda: run.texts,
        )
        run.subscribers.add(subscriber)
        subscriber.add_items(items)
        return subscriber

    @property
    def keep_s(self) -> float:
        return self._settings.keep_s

    # ---- a job from admission to its end

    def _add_run(self, record: JobRecord, source_bytes: int, on_end: Callable[[int], None] | None = None) -> None:
        if self._stopped or record.id in self._runs:
            return
        order = record.order
        run = self._runs[record.id] = JobRun(record, source_bytes, self._scheduler, on_end)
        self._quota.reserve(order.owner, source_bytes)
        if order.model in self._models:
            self._admission.push(record.id, order.model, len(order.inputs), order.owner, order.priority, record.seq)
            self._admit_next(order.model)
        else:
            run.fail(Conflict(f"The model '{order.model}' is no longer served.", code="model_not_found"))
            self._start_run(run)

    def _admit_next(self, model: str) -> None:
        for job in self._admission.next(model):
            self._start_run(self._runs[job])

    def _start_run(self, run: JobRun) -> None:
        run.start(self._supervisor.run_to_completion("job", self._runner.run(run)))

    def _close(self, run: JobRun) -> None:
        order = run.record.order
        if self._runs.pop(run.record.id, None) is None:
            return
        run.leave()
        if run.on_end is not None:
            run.on_end(run.usage.total)
        if self._tracer is not None:
            error = "" if run.failure is None else run.failure.code or run.failure.type
            self._tracer.end_job(run.context, run.record.id, order.model, run.record.created, error)
        self._quota.release(order.owner, run.source_bytes)
        for subscriber in run.subscribers:
            subscriber.end(run.failure)
        if order.hook is not None:
            self._on_end()
        self._admission.leave(run.record.id)
        if order.model in self._models:
            self._admit_next(order.model)

    def _progress(self, run: JobRun) -> JobProgress:
        place = run.job_progress()
        return place if run.task is not None else place._replace(position=self._admission.position(run.record.id))

    # ---- background tasks

    async def _resume(self) -> None:
        now = time.time()
        broken, records, sizes = await self._runner.store_with_retries(
            lambda repository: (repository.fail_unreadable(now), repository.unfinished(), repository.source_bytes())
        )
        if broken:
            self.counters["jobs_failed"] += len(broken)
            log.error("%d unfinished jobs are unreadable and have failed: %s", len(broken), ", ".join(broken))
        if records:
            self.counters["jobs_resumed"] += len(records)
            log.info("%d unfinished jobs are resumed", len(records))
        for record in records:
            try:
                self._add_run(record, sizes.get(record.id, 0))
            except Exception as error:  # one job must not keep the others from being resumed
                self._supervisor.record_failure("jobs_resume", error, time.monotonic())
                self._runs.pop(record.id, None)
        for run in [run for run in self._runs.values() if run.task is not None]:
            await run.entered.wait()
        self._resumed.set()

    async def _expire_waiting(self) -> None:
        """Fail jobs that expire while they wait for admission."""
        while True:
            await asyncio.sleep(_EXPIRY_CHECK_S)
            now = time.monotonic()
            late = [run for run in self._runs.values() if run.task is None and run.expires_at <= now]
            for run in late:
                self._admission.enter(run.record.id)
                run.fail(expired(run.record))
                self._start_run(run)

    async def _sweep(self) -> None:
        jobs, results = self._settings, self._results

        def limits(now: float) -> RetentionLimits:
            return RetentionLimits(
                now - jobs.keep_s, jobs.max_bytes, jobs.max_response_bytes, now - results.ttl_s, results.max_bytes
            )

        await sweep_forever(self._database, min(jobs.keep_s, results.ttl_s), limits)

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(self._settings.checkpoint_every_s)
            await self._save_now()

    async def _save_now(self) -> None:
        """Store the newest checkpoints. If the disk is unavailable, a restart repeats more steps."""
        checkpoints = [checkpoint for run in self._runs.values() for checkpoint in run.unsaved_checkpoints()]
        if not checkpoints:
            return
        try:
            await self._database.do(lambda repository: repository.save(checkpoints))
        except StorageUnavailable:
            return
        for checkpoint in checkpoints:
            run = self._runs.get(checkpoint.job)
            if run is not None:
                run.mark_saved(checkpoint)
