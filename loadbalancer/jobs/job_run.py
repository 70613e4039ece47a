"""A job under way: its images in the queue, and those who follow it. An errand without a connection.

What a worker says comes in here and waits until it is on disk; only then do followers hear of an image.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.jobs.views import JobProgress
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.task import (
    Checkpoint,
    TaskCompleted,
    TaskEnded,
    TaskProgress,
    TaskStarted,
    TaskState,
    TaskUpdate,
)
from loadbalancer.schema.errors import ApiError, from_ended
from loadbalancer.schema.stream_events import Progress
from loadbalancer.storage.records import JobRecord, JobSpec, StoredCheckpoint, StoredImage

Views = Callable[[], Iterator[Progress]]


class JobRun:
    """One unfinished job. All methods are called in the event loop."""

    def __init__(self, record: JobRecord, source_bytes: int, scheduler: SchedulerService, metrics: Metrics) -> None:
        self.record = record
        self.source_bytes = source_bytes
        #: What came and is not on disk yet.
        self._fresh: list[StoredImage] = []
        self.began = False
        self.failure: ApiError | None = None
        self._changed = asyncio.Event()
        #: It is in the queue, or will not be.
        self.entered = asyncio.Event()
        self.followers: set[JobSubscriber] = set()
        #: Whoever attends to it: set from its turn on.
        self.task: asyncio.Task[None] | None = None
        self._scheduler = scheduler
        self._metrics = metrics
        #: Its images in the queue or with a worker: task and place in the job.
        self._tasks: dict[str, int] = {}
        self._steps = {item: (0, image.steps) for item, image in enumerate(record.order.inputs)}
        self._missing = set(self._steps)
        self._saved: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<JobRun {self.record.id}, {len(self._missing)} of {len(self._steps)} images missing, {self.failure!r}>"

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self.failure is not None or not self._missing

    def enter(
        self,
        sources: Sequence[bytes],
        kept: Iterable[StoredImage],
        saved: Mapping[int, Checkpoint],
        left_s: float,
        *,
        begun: bool,
    ) -> None:
        """Queue what is not `kept` already, each image from where it was `saved`. Raises `QueueFull`.

        Its tasks are called the same in every life of the balancer, so that a worker can go on with them; `begun`:
        one may.
        """
        order = self.record.order
        self._mark_finished({image.item for image in kept})
        items = sorted(self._missing)
        if not items:  # the server ended between the last image and the end of the job
            return
        tasks = self._scheduler.submit(
            order.model,
            [order.inputs[item] for item in items],
            timeout_s=left_s,
            priority=order.priority,
            listener=self._on_update,
            sources=sources,
            owner=order.owner,
            weight=order.weight,
            task_ids=[f"{self.record.id}-{item:03}" for item in items],
            checkpoints=[saved.get(item) for item in items],
            may_be_running=begun,
        )
        self._tasks = dict(zip(tasks, items, strict=True))
        self._saved = {item: state.step for item, state in saved.items()}
        self._steps |= {item: (state.step, state.steps) for item, state in saved.items() if item in self._missing}

    def fail(self, error: ApiError) -> None:
        self.failure = error

    def start(self, task: asyncio.Task[None]) -> None:
        """Set the task that runs the job from its admission on."""
        self.task = task

    def mark_entered(self) -> None:
        """Record that the job is in the queue, or that it never will be."""
        self.entered.set()

    async def wait_changed(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def take_unsaved(self) -> list[StoredImage]:
        """Return the finished images that are not on disk yet, and forget them."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def leave(self) -> None:
        """Its images are wanted no more, here at least. Idempotent."""
        self.entered.set()
        tasks, self._tasks = list(self._tasks), {}
        self._scheduler.cancel(tasks)

    def saves(self) -> list[StoredCheckpoint]:
        """Checkpoints that are newer than what `saved` was told."""
        states = [(item, self._scheduler.checkpoint(task)) for task, item in self._tasks.items()]
        fresh = [(item, state) for item, state in states if state and state.step > self._saved.get(item, 0)]
        return [StoredCheckpoint(self.record.id, item, state) for item, state in fresh]

    def saved(self, save: StoredCheckpoint) -> None:
        """It is on disk."""
        self._saved[save.item] = save.state.step

    def place(self) -> JobProgress:
        """Where it stands once it has entered the queue."""
        estimates = [estimate for task in self._tasks if (estimate := self._scheduler.estimate(task)) is not None]
        etas = [estimate.eta_s for estimate in estimates]
        longest = None if None in etas or not etas else max(eta for eta in etas if eta is not None)
        step, steps = (sum(each) for each in zip(*self._steps.values(), strict=True))
        return JobProgress(min((estimate.position for estimate in estimates), default=0), longest, step, steps)

    def views(self) -> Iterator[Progress]:
        """Where each image stands that is not finished."""
        for task, item in self._tasks.items():
            estimate = self._scheduler.estimate(task)
            if estimate is not None:
                yield Progress(item, estimate.state, *self._steps[item], estimate.position, estimate.eta_s)

    def waiting(self, position: int) -> Iterator[Progress]:
        """`views` before it has entered the queue."""
        for item, (step, steps) in self._steps.items():
            yield Progress(item, TaskState.QUEUED, step, steps, position, None)

    def _mark_finished(self, items: set[int]) -> None:
        self._missing -= items
        self._steps |= {item: (self._steps[item][1],) * 2 for item in items}

    def _on_update(self, update: TaskUpdate) -> None:
        item = self._tasks.get(update.task)
        if item is None:
            return
        match update:
            case TaskStarted():
                self.began = True
            case TaskProgress(step=step, steps=steps):
                self._steps[item] = (step, steps)
                if update.preview is None:
                    return  # followers look at the steps at their own pace
                for follower in self.followers:
                    follower.hear(item, update)
                return
            case TaskCompleted():
                del self._tasks[update.task]
                kept = StoredImage(item, bytes(update.image), update.waited_s, update.ran_s, update.flagged)
                self._fresh.append(kept)
                self._mark_finished({item})
                self._metrics.image(self.record.order.model, update.waited_s, update.ran_s)
            case TaskEnded():
                self.failure = self.failure or from_ended(update)
        self._changed.set()


class JobSubscriber:
    """Someone who watches a job: what happened before comes first, then what happens. See `routes.stream`."""

    def __init__(self, order: JobSpec, views: Views, closed: Callable[[JobSubscriber], None]) -> None:
        self.job = GenerationSpec(order.model, order.inputs, 0.0, order.priority)
        self.tasks = [str(item) for item in range(len(order.inputs))]
        self.views = views
        self.news: deque[TaskProgress | TaskCompleted] = deque()
        self.failure: ApiError | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()
        self._closed = closed
        self._shown: set[int] = set()

    def show(self, images: Iterable[StoredImage]) -> None:
        """These images are on disk. Each is told once."""
        for kept in images:
            if kept.item not in self._shown:
                self._shown.add(kept.item)
                news = TaskCompleted(self.tasks[kept.item], kept.image, kept.waited_s, kept.ran_s, kept.flagged)
                self.news.append(news)
        self.changed.set()

    def hear(self, item: int, preview: TaskProgress) -> None:
        """A preview of an image has come. Only the newest of each waits for a reader that is slow."""
        task = self.tasks[item]
        if item not in self._shown:
            waiting = [news for news in self.news if isinstance(news, TaskCompleted) or news.task != task]
            self.news = deque([*waiting, TaskProgress(task, preview.step, preview.steps, preview.preview)])
            self.changed.set()

    def end(self, failure: ApiError | None) -> None:
        """Nothing follows."""
        self.failure = failure
        if not self.over.done():
            self.over.set_result(None)
        self.changed.set()

    def close(self) -> None:
        """Nobody watches any more."""
        self._closed(self)
