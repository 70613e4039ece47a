"""What a step has changed, as messages to the balancer: results, tokens, progress, previews and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from configs.model_sections import Batching
from wire.codec import WorkerEnvelope
from wire.messages import Assignment, Chunk, Progress, Tokens
from wire.text import TaskTokens
from worker.batch_scheduler import BatchScheduler, Member, preview_steps
from worker.engine import StepEngine, TaskError
from worker.fault_isolation import render, save
from worker.postprocessing import FinishedRow, PostProcessor, failure
from worker.transport import Transport

#: Minimum interval of progress reports.
_REPORT_EVERY_S = 0.1
#: Interval of checkpoints in `auto` mode: the work that a lost worker may cost a task.
CHECKPOINT_EVERY_S = 2.0


def checkpoint_interval(every: int | Literal["auto", "never"]) -> tuple[float, float]:
    """Return the seconds and the steps, one of which must pass from one checkpoint of a task to the next."""
    if every == "auto":
        return CHECKPOINT_EVERY_S, math.inf
    return math.inf, math.inf if every == "never" else every


class StepResults:
    """Reports the rows that a step has advanced, and removes those that have ended."""

    def __init__(
        self,
        engine: StepEngine,
        scheduler: BatchScheduler,
        batching: Batching,
        transport: Transport,
        post: PostProcessor,
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._checkpoints = checkpoint_interval(batching.checkpoint_every)
        self._transport = transport
        self._post = post
        info = engine.info()
        self._makes_texts = info.text is not None
        self._makes_chunks = info.streams and not self._makes_texts
        self._last_report = 0.0
        #: Tasks that failed before their result was made.
        self.failed = 0

    def send(self, advanced: Sequence[Member], now: float) -> None:
        """Remove finished tasks; send all that the step has changed as one message."""
        report = now - self._last_report >= _REPORT_EVERY_S
        if report:
            self._last_report = now
        news: list[WorkerEnvelope] = []
        texts: list[TaskTokens] = []
        done: list[FinishedRow] = []
        for member in advanced:
            task, row = member.assignment, member.row
            if self._makes_texts:
                output = row.take_tokens()
                if output is not None:
                    texts.append(TaskTokens(task.task, task.attempt, output))
            elif self._makes_chunks and not self._add_chunks(member, news):
                continue
            step = row.step
            if step >= row.steps:
                self._scheduler.leave(task.task)
                done.append(FinishedRow(task, render(self._engine, member), step))
                self._engine.release(row)
            elif not self._makes_texts:  # each step of a text reports its whole state
                self._on_advanced(member, now, news, report=report)
        if texts:
            news.append(WorkerEnvelope(Tokens(texts)))
        if news or done:
            self._post.report(news, done)

    def _on_advanced(self, member: Member, now: float, news: list[WorkerEnvelope], *, report: bool) -> None:
        """Start a preview and a checkpoint that are due; add a progress report to `news` if it is due."""
        task, row = member.assignment, member.row
        previews = task.inputs.previews
        is_preview = previews > 0 and row.step in preview_steps(row.steps, previews)
        if is_preview:
            image = render(self._engine, member)
            if callable(image):  # results that are ready are of tasks without previews
                self._post.preview(task, image, row.step, row.steps)
        after_s, after_steps = self._checkpoints
        if now - member.saved_at >= after_s or row.step - member.saved_step >= after_steps:
            member.on_checkpoint(now)
            state = save(self._engine, member)
            if state is not None:
                self._post.checkpoint(task, state, row.steps)
        if report and not is_preview:
            news.append(WorkerEnvelope(Progress(task.task, task.attempt, row.step, row.steps)))

    def _add_chunks(self, member: Member, news: list[WorkerEnvelope]) -> bool:
        """Add the new pieces of the result to `news`. False: it is too large for the balancer, and the task has ended.

        A call that is not streamed collects its values, maybe without end.
        """
        task, chunks, size = member.assignment, member.row.take_chunks(), member.row.collected_bytes
        if self._post.can_send(size):
            size = max((len(frame) for _, _, frame in chunks), default=0)
            if self._post.can_send(size):
                news += [
                    WorkerEnvelope(Chunk(task.task, task.attempt, no, part), [frame]) for no, part, frame in chunks
                ]
                return True
            text = f"a piece of the result is too large: it has {size} bytes"
        else:
            text = f"the result is too large: its values have about {size} bytes until now; ask for a stream of them"
        self._scheduler.leave(task.task)
        self._engine.release(member.row)
        self.fail(task, TaskError("error", f"{text} (workers.max_result_bytes)"))
        return False

    def fail(self, assignment: Assignment, error: TaskError) -> None:
        """Send the error of a task."""
        self.failed += 1
        self._transport.send(WorkerEnvelope(failure(assignment, error)))
