"""An unfinished job: its tasks in the scheduler and its subscribers.

Finished images wait here until they are on disk; only then are they published to subscribers.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

from loadbalancer.generation.in_flight import ResultStream
from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.generation.text.parsing import text_parser
from loadbalancer.generation.text.stored_text import pack_text
from loadbalancer.generation.text.text_spec import OutputFormat
from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.jobs.job_context import job_context
from loadbalancer.jobs.token_usage import TokenUsage
from loadbalancer.jobs.views import JobProgress
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.task import (
    Checkpoint,
    TaskCompleted,
    TaskEnded,
    TaskProgress,
    TaskStarted,
    TaskTokens,
    TaskUpdate,
)
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.call_results import CallResult, InvalidResult, check_result, pack_result, unpack_result
from loadbalancer.schema.errors import ApiError, TaskFailed, from_ended, from_ended_call
from loadbalancer.schema.stream_events import Progress
from loadbalancer.schema.text.ended_texts import from_ended_text
from loadbalancer.schema.text.text_requests import PROMPT_PARAMS
from loadbalancer.storage.records import JobRecord, JobSpec, StoredCheckpoint, StoredImage
from wire.text import TokenOutput

ProgressReader = Callable[[], Iterator[Progress]]
#: Reads the image of this index from the disk.
ImageLoader = Callable[[int], Awaitable[StoredImage | None]]


class JobRun:
    """One unfinished job. All methods are called in the event loop."""

    def __init__(
        self,
        record: JobRecord,
        source_bytes: int,
        scheduler: SchedulerService,
        on_end: Callable[[int], None] | None = None,
    ) -> None:
        """`on_end` is called with the tokens that the job has taken."""
        self.record = record
        self.on_end = on_end
        self.source_bytes = source_bytes
        #: On the monotonic clock: a jump of the system's clock expires nothing.
        self.expires_at = time.monotonic() + record.order.deadline - time.time()
        self.context = job_context(record, time.time() - time.monotonic())
        #: Finished images that are not on disk yet.
        self._unsaved: list[StoredImage] = []
        self.started = False
        self.failure: ApiError | None = None
        self._changed = asyncio.Event()
        #: Set once the job is in the queue, or never will be.
        self.entered = asyncio.Event()
        self.subscribers: set[JobSubscriber] = set()
        #: Runs the job from its admission on.
        self.task: asyncio.Task[None] | None = None
        self._scheduler = scheduler
        #: Index in the job by task, for the images in the queue or on a worker.
        self._tasks: dict[str, int] = {}
        self._steps = {item: (0, image.steps) for item, image in enumerate(record.order.inputs)}
        self._missing = set(self._steps)
        #: Texts under way, by index in the job.
        self._texts: dict[int, TextChoice] = {}
        self.usage = TokenUsage(1 if record.order.text is None else record.order.text.choices)
        self._saved_steps: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<JobRun {self.record.id}, {len(self._missing)} of {len(self._steps)} images missing, {self.failure!r}>"

    @property
    def texts(self) -> Mapping[int, TextChoice]:
        """The texts under way, by index in the job."""
        return self._texts

    @property
    def is_finished(self) -> bool:
        return self.failure is not None or not self._missing

    def enter(
        self,
        sources: Sequence[bytes],
        stored: Iterable[StoredImage],
        checkpoints: Mapping[int, Checkpoint],
        timeout_s: float,
        *,
        may_be_running: bool,
    ) -> None:
        """Queue the images that are not `stored`, each from its checkpoint. Raises `QueueFull`.

        Task ids are the same after every restart of the balancer. With `may_be_running` a worker may still run them.
        """
        order = self.record.order
        self._mark_finished({image.item for image in stored})
        items = sorted(self._missing)
        if not items:  # the server ended between the last image and the end of the job
            return
        own_frames = _frames_of_calls(order, sources) or _frames_of_texts(order, sources)
        tasks = self._scheduler.submit(
            order.model,
            [order.inputs[item] for item in items],
            timeout_s=timeout_s,
            priority=order.priority,
            listener=self._on_update,
            sources=() if own_frames else sources,
            own_frames=[own_frames[item] for item in items] if own_frames else (),
            owner=order.owner,
            weight=order.weight,
            task_ids=[f"{self.record.id}-{item:03}" for item in items],
            checkpoints=[checkpoints.get(item) for item in items],
            may_be_running=may_be_running,
            context=self.context,
        )
        self._tasks = dict(zip(tasks, items, strict=True))
        self._saved_steps = {item: state.step for item, state in checkpoints.items()}
        self._steps |= {item: (state.step, state.steps) for item, state in checkpoints.items() if item in self._missing}

    def fail(self, error: ApiError) -> None:
        self.failure = error

    def start(self, task: asyncio.Task[None]) -> None:
        self.task = task

    def mark_entered(self) -> None:
        self.entered.set()

    async def wait_changed(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def take_unsaved(self) -> list[StoredImage]:
        """Return the finished images that are not on disk yet, and forget them."""
        unsaved, self._unsaved = self._unsaved, []
        return unsaved

    def leave(self) -> None:
        """Cancel its tasks in the scheduler. Idempotent."""
        self.entered.set()
        tasks, self._tasks = list(self._tasks), {}
        self._scheduler.cancel(tasks)

    def unsaved_checkpoints(self) -> list[StoredCheckpoint]:
        """Return the checkpoints that are newer than those on disk."""
        states = [(item, self._scheduler.checkpoint(task)) for task, item in self._tasks.items()]
        newer = [(item, state) for item, state in states if state and state.step > self._saved_steps.get(item, 0)]
        return [StoredCheckpoint(self.record.id, item, state) for item, state in newer]

    def mark_saved(self, checkpoint: StoredCheckpoint) -> None:
        self._saved_steps[checkpoint.item] = checkpoint.state.step

    def job_progress(self) -> JobProgress:
        estimates = [estimate for task in self._tasks if (estimate := self._scheduler.estimate(task)) is not None]
        etas = [estimate.eta_s for estimate in estimates]
        eta_s = None if None in etas or not etas else max(eta for eta in etas if eta is not None)
        step, steps = (sum(each) for each in zip(*self._steps.values(), strict=True))
        return JobProgress(min((estimate.position for estimate in estimates), default=0), eta_s, step, steps)

    def image_progress(self) -> Iterator[Progress]:
        """Yield the progress of each unfinished image."""
        for task, item in self._tasks.items():
            estimate = self._scheduler.estimate(task)
            if estimate is not None:
                yield Progress(item, estimate.state, *self._steps[item], estimate.position, estimate.eta_s)

    def waiting_progress(self, position: int) -> Iterator[Progress]:
        """Yield the progress of the images before the job is admitted."""
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
                self.started = True
            case TaskProgress(step=step, steps=steps):
                self._steps[item] = (step, steps)
                if update.preview is None:
                    return  # subscribers poll the steps
                for subscriber in self.subscribers:
                    subscriber.add_preview(item, update)
                return
            case TaskTokens(output=output):
                self._on_tokens(item, output)
                return
            case TaskCompleted():
                del self._tasks[update.task]
                self._on_completed(item, update)
            case TaskEnded():
                self.failure = self.failure or self._error(item, update)
        self._changed.set()

    def _error(self, item: int, ended: TaskEnded) -> ApiError:
        """The error of the endpoint."""
        if self.record.order.text is not None:
            return from_ended_text(ended, PROMPT_PARAMS[self.record.order.path])
        return from_ended_call(ended, f"instances[{item}]") if self.record.order.calls else from_ended(ended)

    def _on_tokens(self, item: int, output: TokenOutput) -> None:
        choice = self._texts.get(item)
        if choice is None:
            choice = self._texts[item] = TextChoice(item)
            engine, options = self._scheduler.pools[self.record.order.model].engine_info, self.record.order.text
            if engine is not None and engine.text is not None and options is not None:
                wanted = OutputFormat(options.tools, options.reasoning, options.parallel_calls)
                choice.parser = text_parser(engine.text, wanted)
        choice.add(output)
        self.usage.update(item, choice)
        steps = self._steps[item][1]
        self._steps[item] = (min(choice.generated_tokens, steps), steps)

    def _on_completed(self, item: int, update: TaskCompleted) -> None:
        if self.record.order.text is not None:
            choice = self._texts.pop(item, TextChoice(item))
            self.context.on_usage(choice.prompt_tokens, choice.generated_tokens)
            data = pack_text(choice)
        elif self.record.order.calls:
            result = CallResult(update.parts, update.frames)
            try:
                check_result(result)  # it is read later, when nothing can be done about it
            except InvalidResult as error:
                self.failure = self.failure or TaskFailed(f"The result cannot be sent: {error}.", code="invalid_result")
                return
            data = pack_result(result)
        else:
            data = bytes(update.image)
        self._unsaved.append(
            StoredImage(item, data, update.waited_s, update.ran_s, update.flagged, update.truncated_tokens)
        )
        self._mark_finished({item})


def _frames_of_calls(order: JobSpec, sources: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Return the frames of each call, which are stored one after the other; none for images."""
    frames = iter(sources)
    return [list(itertools.islice(frames, len(call.parts))) for call in order.calls]


def _frames_of_texts(order: JobSpec, sources: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Return the prompt of each text; those of one prompt share it. None for other jobs."""
    if order.text is None:
        return []
    return [[sources[item // order.text.choices]] for item in range(len(order.inputs))]


class JobSubscriber(ResultStream):
    """A reader of a job's results; a late one gets the stored images first.

    Its images wait on the disk, not in memory: `load` reads each when it is sent.
    """

    def __init__(
        self,
        spec: JobSpec,
        progress: ProgressReader,
        load: ImageLoader,
        on_close: Callable[[JobSubscriber], None],
        texts: Callable[[], Mapping[int, TextChoice]] = dict,
    ) -> None:
        """`texts` returns those under way, by index in the job."""
        super().__init__(
            GenerationSpec(spec.model, spec.images, 0.0, spec.priority), [str(item) for item in range(len(spec.inputs))]
        )
        self.spec = spec
        self._progress = progress
        self._load = load
        self._on_close = on_close
        self.texts = texts
        self._published: set[int] = set()

    def progress(self) -> Iterator[Progress]:
        return self._progress()

    def add_items(self, items: Iterable[int]) -> None:
        """Publish images that are on disk, each once."""
        for item in items:
            if item not in self._published:
                self._published.add(item)
                self._publish(TaskCompleted(self.tasks[item], (), 0.0, 0.0))

    def add_preview(self, item: int, preview: TaskProgress) -> None:
        """Publish a preview. It replaces an older one of the same image that a slow reader has not taken."""
        task = self.tasks[item]
        if item not in self._published:
            self.events = deque(e for e in self.events if isinstance(e, TaskCompleted) or e.task != task)
            self._publish(TaskProgress(task, preview.step, preview.steps, preview.preview))

    def _publish(self, event: TaskProgress | TaskCompleted) -> None:
        self.events.append(event)
        self.changed.set()

    async def load(self, completed: TaskCompleted) -> TaskCompleted | None:
        stored = await self._load(int(completed.task))
        if stored is None:
            return None
        if self.spec.calls:
            parts, frames = unpack_result(stored.image)
            return TaskCompleted(completed.task, frames, stored.waited_s, stored.ran_s, parts=tuple(parts))
        return TaskCompleted(
            completed.task,
            (stored.image,),
            stored.waited_s,
            stored.ran_s,
            stored.flagged,
            truncated_tokens=stored.truncated_tokens,
        )

    def release(self, size: int) -> None:
        """Do nothing: what has been sent is not held here."""

    def close(self) -> None:
        self._on_close(self)
