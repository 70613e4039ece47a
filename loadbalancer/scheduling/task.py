"""A task, and the updates that its listener receives."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from loadbalancer.context.request_context import RequestContext
from loadbalancer.scheduling.task_state import ENDS, TRANSITIONS, InvalidTransition, Reason, TaskState, Transition
from loadbalancer.scheduling.text_work import NO_PROMPT, PromptSteps
from wire.codec import Frame
from wire.inputs import CallInputs, Part, Shape, TaskInputs, TextInputs, reports_tokens
from wire.messages import Assignment, FailureKind
from wire.text import TokenOutput, pack_tokens

#: A task during which this many workers died may be the cause: from then on it runs isolated, as it does in its last
#: attempt, so that it does not fail for the fault of another. One death is treated as chance, so that a killed worker
#: does not serialize its whole batch.
_ISOLATED_AFTER_CRASHES = 2
#: Deaths of workers before they told of a start that are taken for chance. A task can also kill its worker at once.
_CHANCE_CRASHES = 2
#: Losses of workers which have returned that do not count for a task.
_MAX_EXCUSED_CRASHES = 3
#: A generation that is longer than expected is expected to take this part of its length more: 1 / 4.
_LONGER = 4
#: Bounds the memory of a task that is preempted again and again.
_MAX_HISTORY = 100


class OutputMissing(ValueError):
    """Output before this was not received: it was lost with a connection."""


class Checkpoint(NamedTuple):
    """A task's state at a step boundary, after `step` of `steps` forward passes."""

    step: int
    steps: int
    frames: Sequence[Frame]


@dataclass(slots=True, eq=False)
class Task:
    """One image or call of a request. Times are seconds on the scheduler's clock."""

    id: str
    model: str
    inputs: TaskInputs
    created: float
    #: Time after which the result is useless.
    deadline: float
    #: Within one owner, higher goes first; equal priorities go by age.
    priority: int = 0
    #: Owners share the workers' time in proportion to their weights.
    owner: str = "anonymous"
    weight: float = 1.0
    state: TaskState = TaskState.QUEUED
    #: Number of the latest assignment; messages about an earlier one are stale.
    attempt: int = 0
    #: Highest attempt that a worker claimed to run for an earlier balancer process.
    last_claimed_attempt: int = 0
    #: Some worker may still run it for an earlier balancer process.
    may_be_running: bool = False
    #: Number of workers that died while they ran this task.
    crashes: int = 0
    #: Number of those that have returned since, and do not count.
    excused_crashes: int = 0
    #: Number of workers that died with it before they told that they ran anything.
    unstarted_crashes: int = 0
    worker: str | None = None
    step: int = 0
    #: Forward passes in total; the worker corrects the request's number when it starts.
    steps: int = 1
    #: Pixels of its source images, or the parts of a call, sent with every assignment.
    sources: Sequence[Frame] = ()
    #: State at `checkpoint_step`, from which the task resumes if its worker is lost.
    checkpoint: Sequence[Frame] = ()
    checkpoint_step: int = 0
    #: Ids of the tokens that a text task has generated: its complete state.
    tokens: array[int] | tuple[()] = ()
    #: Its text has reached its end, although its worker may not have said yet that it is finished.
    has_text_end: bool = False
    #: Steps that computing its prompt takes the place of.
    prompt: PromptSteps = NO_PROMPT
    first_started: float | None = None
    #: Time of its latest start on a worker.
    started: float | None = None
    #: Its worker was asked to preempt it and has not done so yet.
    preempt_requested: bool = False
    #: Previews received from workers.
    previews: int = 0
    #: Chunks of a streamed result that its listener has received.
    chunks: int = 0
    #: A restarted attempt gives the same chunks, so that a stream may go on.
    repeatable: bool = False
    #: Number of preemptions in favour of another task or another worker.
    preempt_count: int = 0
    #: It has run from its first step on one worker, so that its work is a sample of the cost of a task.
    uninterrupted: bool = True
    #: Work that workers have spent on it, in seconds of a worker that runs nothing else.
    work_s: float = 0.0
    #: Number of tasks of its request.
    siblings: int = 1
    #: Of its request, for logs and traces.
    context: RequestContext | None = None
    #: What its costs are kept by.
    shape: Shape = field(init=False)
    source_bytes: int = field(init=False)
    #: No other task may share a batch with it.
    isolated: bool = field(init=False)
    #: Its latest transitions: time, state, reason, and the worker and step at that time.
    history: list[Transition] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shape = self.inputs.shape
        self.source_bytes = sum(map(len, self.sources))
        self.isolated = self.crashes >= _ISOLATED_AFTER_CRASHES

    def transition(self, to: TaskState, now: float, reason: Reason) -> None:
        if to not in TRANSITIONS[self.state]:
            raise InvalidTransition(self.id, self.state, to, self.history)
        self.state = to
        self.history.append((now, to, reason, self.worker, self.step))
        if len(self.history) > _MAX_HISTORY:
            del self.history[0]

    @property
    def is_finished(self) -> bool:
        return self.state in ENDS

    @property
    def remaining_steps(self) -> int:
        return max(self.steps - self.step, 0)

    @property
    def remaining_work(self) -> int:
        """Remaining steps as they count in a full batch, where the prompt of a text takes the place of more of them."""
        left = self.steps - self.step
        left = max(left, 0)
        prompt = self.prompt
        return left if prompt is NO_PROMPT or self.tokens else left + prompt.in_full_batch - prompt.single

    def expect(self, tokens: int, prompt: PromptSteps) -> None:
        """Set the expected work of a text that has not started."""
        self.prompt, self.steps = prompt, prompt.single + tokens

    def on_progress(self, step: int, steps: int, frames: Sequence[Frame], *, preview: bool) -> TaskProgress:
        """Take in a worker's progress report, with a preview, a checkpoint, both or none.

        Workers make previews and checkpoints beside their step loop, so that one may arrive after the report of a later
        step.
        """
        if steps > self.steps or step > self.steps:
            bound = self.inputs.max_steps
            step, steps = min(step, bound), min(steps, bound)
        self.step, self.steps = max(self.step, step), max(steps, step, 1)
        images, checkpoint = frames[:preview], frames[preview:]
        if checkpoint and step > self.checkpoint_step:
            self.checkpoint, self.checkpoint_step = tuple(checkpoint), step
        image = images[0] if images and self.previews < self.inputs.previews * self.attempt else None
        self.previews += image is not None
        return TaskProgress(self.id, self.step if image is None else step, self.steps, image)

    @property
    def can_restart(self) -> bool:
        """False once its client has a part of a stream that another attempt would not repeat."""
        return self.repeatable or not self.chunks

    @property
    def can_miss_output(self) -> bool:
        """Whether its output comes in pieces, of which none may be lost, and another attempt can repeat them."""
        return reports_tokens(self.inputs) or (
            isinstance(self.inputs, CallInputs) and self.inputs.stream and self.can_restart
        )

    def on_chunk(self, index: int, part: Part, frame: Frame, *, repeatable: bool) -> TaskChunk | None:
        """Take in a piece of the result; None if it was received before. Raises `OutputMissing`."""
        if index > self.chunks:
            raise OutputMissing(f"chunk {index} came before chunk {self.chunks}")
        if index < self.chunks:
            return None
        self.chunks, self.repeatable = index + 1, repeatable
        return TaskChunk(self.id, index, part, frame)

    def on_tokens(self, output: TokenOutput) -> TaskTokens:
        """Take in generated tokens, which continue exactly where the last ones ended. Raises `ValueError` otherwise."""
        inputs, count = self.inputs, len(self.tokens)
        if not isinstance(inputs, TextInputs):
            raise ValueError("the task generates no text")
        if self.has_text_end:
            raise ValueError("tokens came after the end of the text")
        if output.index != count:
            error = OutputMissing if output.index > count else ValueError
            raise error(f"token {output.index} came where token {count} was expected")
        if isinstance(self.tokens, tuple):
            self.tokens = array("I")
        self.tokens.extend(output.tokens)
        count = len(self.tokens)
        if count > inputs.max_tokens:
            raise ValueError(f"{count} tokens were generated, {inputs.max_tokens} were asked for")
        self.step = self.prompt.single + count
        if output.finish:
            self.steps, self.has_text_end = self.step, True
        elif self.step >= self.steps:  # longer than expected
            self.steps = self.prompt.single + min(count + max(count // _LONGER, 1), inputs.max_tokens)
        return TaskTokens(self.id, output)

    @property
    def state_at(self) -> int:
        """The step at which it resumes on another worker; of a text, its number of tokens."""
        return len(self.tokens) or self.checkpoint_step

    def assignment(self) -> tuple[Assignment, Sequence[Frame]]:
        """Return what a worker has to know: its sources, and the state from which it continues if it has one."""
        frames = self.sources
        if self.tokens:
            frames = [*frames, pack_tokens(self.tokens)]
        elif self.checkpoint:
            frames = [*frames, *self.checkpoint]
        context, inputs, count = self.context, self.inputs, len(frames)
        step = len(self.tokens) or self.checkpoint_step
        if context is None:
            return Assignment(self.id, self.attempt, inputs, step, self.isolated, count), frames
        ids = context.request_id, "" if context.trace is None else context.trace.traceparent
        return Assignment(self.id, self.attempt, inputs, step, self.isolated, count, *ids), frames

    def on_preempted(self, step: int, frames: Sequence[Frame]) -> None:
        """Take back the task from its worker, with its state at this step where it has one."""
        if frames:
            self.step = self.checkpoint_step = step
            self.checkpoint = tuple(frames)

    def resume_from(self, state: Checkpoint) -> None:
        """Continue a task of an earlier balancer process from its checkpoint."""
        self.step, self.steps, self.uninterrupted = state.step, max(state.steps, state.step, 1), False
        self.checkpoint, self.checkpoint_step = tuple(state.frames), state.step

    def on_unstarted_crash(self, max_attempts: int) -> None:
        """Note that a worker died that held this task and was not known to run any. A few such deaths are chance."""
        self.unstarted_crashes += 1
        if self.unstarted_crashes > _CHANCE_CRASHES:
            self.on_crash(max_attempts)

    def on_crash(self, max_attempts: int) -> None:
        """Note that a worker died while it ran this task. Its last attempt is isolated, unless it is the only one."""
        self.crashes += 1
        self.isolated = self.crashes >= max(min(_ISOLATED_AFTER_CRASHES, max_attempts - 1), 1)

    def on_worker_return(self) -> None:
        """Note that a worker that was taken for dead has returned. It stays isolated where it is.

        A task can also hang its worker for a while, so that only a few such losses do not count.
        """
        if self.crashes and self.excused_crashes < _MAX_EXCUSED_CRASHES:
            self.crashes -= 1
            self.excused_crashes += 1

    def roll_back(self) -> int:
        """Return to the checkpoint; return the number of steps to repeat."""
        if self.tokens:
            return 0
        lost, self.step = self.step - self.checkpoint_step, self.checkpoint_step
        return max(lost, 0)


# ---- updates for the listener of the request


class TaskStarted(msgspec.Struct, frozen=True):
    """A worker has the task in its batch; sent again after the loss of a worker."""

    task: str


class TaskProgress(msgspec.Struct, frozen=True):
    """`step` of `steps` are done; `preview` is an encoded intermediate image where one was requested."""

    task: str
    step: int
    steps: int
    preview: Frame | None = None


class TaskChunk(msgspec.Struct, frozen=True):
    """One piece of a streamed result, in order."""

    task: str
    index: int
    part: Part
    frame: Frame


class TaskTokens(msgspec.Struct, frozen=True):
    """What one step has generated for a text task, in order and without gaps."""

    task: str
    output: TokenOutput


class TaskCompleted(msgspec.Struct, frozen=True):
    """The result and its times in seconds. `flagged`: the model's safety checker rejects the image."""

    task: str
    #: One frame for each part. An image is a single part.
    frames: Sequence[Frame]
    waited_s: float
    ran_s: float
    flagged: bool = False
    parts: tuple[Part, ...] = ()
    #: Tokens at the end of the prompts that the model has not read.
    truncated_tokens: int = 0

    @property
    def image(self) -> Frame:
        """The encoded image of an image task."""
        return self.frames[0]


class TaskEnded(msgspec.Struct, frozen=True):
    """The task ended without a result."""

    task: str
    state: TaskState
    kind: FailureKind | None
    message: str
    #: HTTP status that a user's engine chose; 0: none.
    status: int = 0


TaskUpdate = TaskStarted | TaskProgress | TaskChunk | TaskTokens | TaskCompleted | TaskEnded


class TaskEstimate(msgspec.Struct, frozen=True):
    """Tasks before it in the queue (0 once it runs) and seconds to its end; None if unknown."""

    state: TaskState
    position: int
    eta_s: float | None


class QueueFull(Exception):
    """The queue has no room for more tasks or source images; it should have some in `retry_after_s`."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class DeadlineUnreachable(QueueFull):
    """By the measured costs the request would finish in `eta_s`, too late for its deadline."""

    def __init__(self, reason: str, retry_after_s: float, eta_s: float) -> None:
        super().__init__(reason, retry_after_s)
        self.eta_s = eta_s
