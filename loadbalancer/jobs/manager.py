"""Durable jobs: from the disk through the queue and back, across restarts.

A job is on disk before it is acknowledged, and an image of it before anyone hears of it; its end is written once, and
who comes later with another is dropped. Jobs enter the queue as it has room (`backlog` says who is next) and are taken
up again after a restart, each image from its last checkpoint. While the disk takes nothing, what is drawn waits here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

from configs.settings import Settings
from loadbalancer.jobs.job_queue import JobAdmission
from loadbalancer.jobs.job_run import JobRun, JobSubscriber
from loadbalancer.jobs.views import JobProgress, JobView, cancelled, expired, job_view, missing_result_error
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.task import QueueFull
from loadbalancer.schema.errors import Conflict, InternalError, TooBusy, shutting_down
from loadbalancer.storage.database import Database, StorageUnavailable, Work, sweep_forever
from loadbalancer.storage.records import Failure, IdempotencyKey, JobRecord, JobSpec, JobState, StoredImage
from loadbalancer.storage.repository import Repository

log = logging.getLogger(__name__)

Result = TypeVar("Result")
#: Pause before the disk or a full queue is tried again.
_AGAIN_S = 0.5
_EXPIRY_CHECK_S = 1.0
#: Most that a start waits for the jobs of an earlier life.
_RESUME_S = 5.0


class JobManager:
    """All jobs. All methods are called in the event loop."""

    def __init__(
        self,
        settings: Settings,
        scheduler: SchedulerService,
        metrics: Metrics,
        database: Database,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_end` is called when a job with a webhook ends."""
        self._settings = settings.jobs
        self._admission = JobAdmission(
            settings.models, max(int(settings.queue.max_tasks * settings.jobs.queue_share), 1)
        )
        self._scheduler = scheduler
        self._metrics = metrics
        self._database = database
        self._runs: dict[str, JobRun] = {}
        self._models = settings.models
        self._source_bytes = 0
        #: Sums since the start: jobs by what became of them.
        self.counters: Counter[str] = Counter()
        self._background_tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        #: What an earlier life left is in the queue, or cannot be read now.
        self._settled = asyncio.Event()
        self._on_end = on_end

    def __repr__(self) -> str:
        return f"<JobManager {len(self)} unfinished, {self._admission!r}>"

    def __len__(self) -> int:
        return len(self._runs)

    async def start(self) -> None:
        """Take up what an earlier life left, as soon as the disk can be read, and look after everything from now on.

        To be called before workers are heard: what they still run is in the queue when this returns, unless the disk
        cannot be read or takes long.
        """
        sweeping = sweep_forever(self._database, self.keep_s, self._settings.max_bytes)
        for coroutine in (self._resume(), self._expire_waiting(), self._save(), sweeping):
            self._spawn(coroutine)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), _RESUME_S)
        self._settled.set()

    async def stop(self) -> None:
        """Write how far everything is, and let go of it: the next start goes on from there.

        What is still accepted is on disk and no more: the queue ends before it could be done.
        """
        self._stopped = True
        for coroutine in self._background_tasks:
            coroutine.cancel()
        await asyncio.gather(*self._background_tasks, return_exceptions=True)
        await self._save_now()
        for run in self._runs.values():
            run.leave()
            for subscriber in run.subscribers:
                subscriber.end(shutting_down())

    # ---- what the routes use

    async def add(self, order: JobSpec, sources: Sequence[bytes], key: IdempotencyKey | None) -> JobView:
        """Accept the job: it is on disk when this returns. With a key that came before, the view is of that job.

        Raises `Reused`, `StorageUnavailable` and `TooBusy`.
        """
        size = sum(map(len, sources))
        job, now, full = f"job_{uuid.uuid4().hex}", time.time(), self._full(size)

        def work(repository: Repository) -> JobRecord:
            if full is not None and (key is None or repository.job_of(key) is None):
                raise full
            return repository.add(job, order, sources, key, now)

        record = await self._database.do(work)
        if record.id == job:
            self.counters["jobs_accepted"] += 1
            self._add_run(record, size)
        return self.view(record)

    async def find(self, job: str, owner: str) -> tuple[JobRecord | None, list[StoredImage]]:
        """The owner's job, if there is one, and what is finished of it. Raises `StorageUnavailable`."""
        return await self._database.do(lambda repository: (repository.get(job, owner), repository.images(job)))

    async def page(self, owner: str, limit: int, after: str | None, state: JobState | None) -> list[JobRecord]:
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
        """The job as its client sees it."""
        run = self._runs.get(record.id)
        return job_view(record, None if run is None or record.ended is not None else self._progress(run), self.keep_s)

    def subscribe(self, record: JobRecord, stored: Sequence[StoredImage]) -> JobSubscriber:
        """Subscribe to the job's results. Call it directly after `find`, without an await between them."""
        if record.ended is None and record.readable:
            self._add_run(record, 0)  # unless it is: right after a start, the disk is read before the jobs are
        run = self._runs.get(record.id)
        if run is None:
            subscriber = JobSubscriber(record.order, lambda: iter(()), lambda _: None)
            subscriber.add_images(stored)
            subscriber.end(missing_result_error(record) if record.ended is not None else shutting_down())
            return subscriber
        subscriber = JobSubscriber(
            record.order,
            lambda: run.waiting_progress(self._progress(run).position) if run.task is None else run.image_progress(),
            run.subscribers.discard,
        )
        run.subscribers.add(subscriber)
        subscriber.add_images(stored)
        return subscriber

    @property
    def keep_s(self) -> float:
        """How long results are kept."""
        return self._settings.keep_s

    # ---- the way of a job

    def _full(self, source_bytes: int) -> TooBusy | None:
        """Why a job with pictures of this size is not taken, if it is not."""
        if len(self._runs) >= self._settings.max_unfinished:
            return TooBusy(f"{len(self._runs)} jobs are unfinished, and more are not taken.", retry_after_s=10)
        if self._source_bytes + source_bytes > self._settings.max_bytes:
            return TooBusy("The pictures of unfinished jobs fill the room that there is for them.", retry_after_s=10)
        return None

    def _add_run(self, record: JobRecord, source_bytes: int) -> None:
        if self._stopped or record.id in self._runs:
            return
        order = record.order
        run = self._runs[record.id] = JobRun(record, source_bytes, self._scheduler, self._metrics)
        self._source_bytes += source_bytes
        if order.model in self._models:
            self._admission.push(record.id, order.model, len(order.inputs), order.owner, order.priority, record.seq)
            self._admit_next(order.model)
        else:
            run.fail(Conflict(f"The model '{order.model}' is not served any more.", code="model_not_found"))
            self._start_run(run)

    def _admit_next(self, model: str) -> None:
        for job in self._admission.next(model):
            self._start_run(self._runs[job])

    def _start_run(self, run: JobRun) -> None:
        run.start(self._spawn(self._run_job(run)))

    async def _run_job(self, run: JobRun) -> None:
        """One job from its turn to its end."""
        if run.failure is None:
            try:
                await self._enter(run)
            except Exception:  # a bug, or a file that something else has written to: the client is owed an end
                log.exception("job %s cannot be entered into the queue", run.record.id)
                run.fail(InternalError("The job could not be taken up, because of an error of the server."))
        run.mark_entered()
        while not run.is_finished:
            await run.wait_changed()
            if not run.is_finished:
                await self._persist(run)
        await self._persist(run)
        self._close(run)

    async def _enter(self, run: JobRun) -> None:
        job = run.record.id
        sources, stored, checkpoints = await self._store_with_retries(
            lambda repository: (repository.sources(job), repository.images(job), repository.checkpoints(job))
        )
        while True:
            timeout_s = run.record.order.deadline - time.time()
            if timeout_s <= 0:
                run.fail(expired(run.record))
                return None
            try:
                may_be_running = run.record.started is not None and not self._settled.is_set()
                return run.enter(sources, stored, checkpoints, timeout_s, may_be_running=may_be_running)
            except QueueFull:  # of requests that are no jobs
                await asyncio.sleep(_AGAIN_S)

    async def _persist(self, run: JobRun) -> None:
        """What came since, and the end if it is that."""
        unsaved = run.take_unsaved()
        failure, over, began, now = run.failure, run.is_finished, run.started, time.time()
        job = run.record.id

        def work(repository: Repository) -> JobRecord | None:
            if began:
                repository.started(job, now)
            for image in unsaved:
                repository.keep(job, image)
            if failure is not None:
                return repository.finish(job, JobState.FAILED, Failure(failure.status, failure.body.error), now)
            return repository.finish(job, JobState.DONE, None, now) if over else None

        end = await self._store_with_retries(work)
        if end is not None:
            self.counters[f"jobs_{end.state.value}"] += 1
        for subscriber in run.subscribers:
            subscriber.add_images(unsaved)

    def _close(self, run: JobRun) -> None:
        order = run.record.order
        if self._runs.pop(run.record.id, None) is None:
            return
        run.leave()
        self._source_bytes -= run.source_bytes
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

    # ---- chores

    async def _resume(self) -> None:
        now = time.time()
        broken, records, sizes = await self._store_with_retries(
            lambda repository: (repository.give_up(now), repository.unfinished(), repository.source_bytes())
        )
        if broken:
            self.counters["jobs_failed"] += len(broken)
            log.error("%d unfinished jobs cannot be read any more and have failed: %s", len(broken), ", ".join(broken))
        if records:
            self.counters["jobs_resumed"] += len(records)
            log.info("%d unfinished jobs are taken up again", len(records))
        for record in records:
            self._add_run(record, sizes.get(record.id, 0))
        for run in [run for run in self._runs.values() if run.task is not None]:
            await run.entered.wait()
        self._settled.set()

    async def _expire_waiting(self) -> None:
        """Jobs whose time is over while they wait for their turn."""
        while True:
            await asyncio.sleep(_EXPIRY_CHECK_S)
            now = time.time()
            late = [run for run in self._runs.values() if run.task is None and run.record.order.deadline <= now]
            for run in late:
                self._admission.enter(run.record.id)
                run.fail(expired(run.record))
                self._start_run(run)

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(self._settings.checkpoint_every_s)
            await self._save_now()

    async def _save_now(self) -> None:
        """Keep the newest checkpoints. A disk that takes none only costs steps that are done again."""
        saves = [save for run in self._runs.values() for save in run.unsaved_checkpoints()]
        if not saves:
            return
        try:
            await self._database.do(lambda repository: repository.save(saves))
        except StorageUnavailable:
            return
        for save in saves:
            run = self._runs.get(save.job)
            if run is not None:
                run.mark_saved(save)

    async def _store_with_retries(self, work: Work[Result]) -> Result:
        """The work, however long the disk does not take it."""
        while True:
            try:
                return await self._database.do(work)
            except StorageUnavailable:
                self._settled.set()  # a start does not wait for it
                await asyncio.sleep(_AGAIN_S)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._background_tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, coroutine: asyncio.Task[None]) -> None:
        self._background_tasks.discard(coroutine)
        if not coroutine.cancelled() and (error := coroutine.exception()) is not None:
            log.error("a chore of the jobs broke", exc_info=error)
