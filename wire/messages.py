"""The messages between the balancer and a worker.

A message is a small tagged struct. Bulk data (images, checkpoints, previews) travels in raw frames after the header;
`frames` is the number of frames of a message (see `codec`). A change of a field changes the protocol: raise `PROTOCOL`
and update the golden frames in the tests.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import msgspec

from wire.inputs import MAX_PARTS, Count, GenerationMode, Name, Part, Shape, TaskInputs
from wire.text import TaskTokens, TextCounters, TextInfo

PROTOCOL = 9

#: Shapes whose step times a worker reports, and batch sizes of each.
MAX_CURVES = 256
#: Tasks of one message with generated tokens.
MAX_TEXT_TASKS = 4096

Sum = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
ErrorStatus = Annotated[int, msgspec.Meta(ge=0, le=599)]
SchemaText = Annotated[str, msgspec.Meta(max_length=2**16)]

FailureKind = Literal["invalid", "context_length", "error", "out_of_memory", "unsafe"]
#: Which requests of one size can share a forward pass.
PassSharing = Literal["always", "equal_prompt_lengths", "never"]

#: Exit status of a worker whose balancer was silent for `workers.orphan_after_s`.
EXIT_ORPHANED = 3


class Assignment(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task assigned to a worker. Its frames hold the source images or parts, then the checkpoint."""

    task: Name
    attempt: Count
    inputs: TaskInputs
    #: Step of the checkpoint to resume from.
    step: Count = 0
    #: No other task may share its batch: earlier workers died with it, and it may be the cause.
    isolated: bool = False
    frames: Count = 0
    #: Of the request, for logs; empty if it has none.
    request_id: Name = ""
    #: Its span as the header `traceparent`; empty without a trace.
    traceparent: Name = ""


class WorkerCounters(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker's sums since its start; rates follow from two readings."""

    steps: Sum = 0
    #: Tasks, summed over steps: `rows / steps` is the mean batch.
    rows: Sum = 0
    max_batch: Sum = 0
    #: Tasks that joined a batch whose other rows had already started.
    joined_midway: Sum = 0
    finished: Sum = 0
    failed: Sum = 0
    #: Seconds spent inside `engine.step`.
    step_s: Seconds = 0.0
    #: Number of times that a batch was reduced because it did not fit into memory.
    out_of_memory: Sum = 0
    #: Malformed messages from the balancer.
    malformed: Sum = 0


class StepCurve(msgspec.Struct, frozen=True, omit_defaults=True):
    """Duration of a step by batch size, for tasks of one shape."""

    shape: Shape
    #: Batch limit: larger batches gain nothing, take too long or do not fit.
    cap: Count
    #: (tasks in the batch, seconds of a step), by tasks.
    points: Annotated[
        list[tuple[Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)], Seconds]], msgspec.Meta(max_length=MAX_CURVES)
    ] = []

    def __post_init__(self) -> None:
        """Raises `ValueError` unless the batch sizes rise strictly."""
        if any(fewer >= more for (fewer, _), (more, _) in itertools.pairwise(self.points)):
            raise ValueError("points must rise by their tasks")


class ImageDefaults(msgspec.Struct, frozen=True, array_like=True):
    """What an engine generates with if neither the request nor the configuration says it."""

    steps: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    guidance_scale: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    #: Both sides in pixels.
    side: Annotated[int, msgspec.Meta(ge=1, le=65536)]


class EngineInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Properties of a worker's engine, for clients and for validation."""

    #: Class of its pipeline.
    pipeline: Name = ""
    #: `family` (a pipeline with its own adapter), `generic` (any pipeline, one thread per request), `step` and
    #: `library` (language models, the latter in a library that batches by itself) or `sim`.
    batching: Name = "family"
    #: Supported inputs.
    modes: tuple[GenerationMode, ...] = ("text",)
    #: True if tasks can move between workers with their progress.
    checkpoints: bool = False
    loras: bool = False
    reproducible: bool = False
    #: Which requests of one size can share a forward pass.
    shares_passes: PassSharing = "always"
    #: None: it has none of its own.
    defaults: ImageDefaults | None = None
    dtype: Name = ""
    #: What one step is.
    unit: Literal["step", "token", "call"] = "step"
    #: Results can be sent piece by piece.
    streams: bool = False
    #: Equal inputs give equal chunks, so that a stream goes on elsewhere after its worker was lost.
    repeatable: bool = False
    #: JSON Schema of one input and of one result; empty if unknown.
    input_schema: SchemaText = ""
    output_schema: SchemaText = ""
    #: Of a language model.
    text: TextInfo | None = None


class StartupTimes(msgspec.Struct, frozen=True, omit_defaults=True):
    """Durations of the phases of a start, in seconds, without what a standby worker did before its activation."""

    #: From the creation of the process, or from the activation of a standby worker, until its program ran.
    spawn_s: Seconds = 0.0
    #: Import of the engine's libraries.
    import_s: Seconds = 0.0
    #: Weights into main memory.
    load_s: Seconds = 0.0
    #: Weights onto the device.
    device_s: Seconds = 0.0
    #: First step and image, and calibration.
    warm_up_s: Seconds = 0.0
    #: It was a standby worker.
    standby: bool = False

    @property
    def total_s(self) -> float:
        """The sum of all phases; 0 if unknown."""
        return self.spawn_s + self.import_s + self.load_s + self.device_s + self.warm_up_s


# ---- worker -> balancer


class Hello(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """First message of a connection. A worker that reconnects lists the tasks that it still runs."""

    protocol: int
    worker: Name
    model: Name
    device: Name
    pid: Count
    #: (task, attempt).
    running: list[tuple[Name, Count]] = []
    engine_info: EngineInfo = EngineInfo()
    start: StartupTimes = StartupTimes()


class Capacity(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The worker can hold `slots` tasks in total. Sent at every change; 0 means that it drains.

    `ahead`: so many more may be sent once no worker has a free slot. They start at the next step boundaries. Such a
    worker may announce the start of a very short step together with its results.
    """

    slots: Count
    ahead: Count = 0


class Started(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The task has joined the running batch. Omitted where its end leaves in the same message."""

    task: Name
    attempt: Count


class Progress(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """`step` of `steps` are done. Its frames hold a preview (if `preview`), then a checkpoint at `step`."""

    task: Name
    attempt: Count
    step: Count
    steps: Count
    preview: bool = False
    frames: Count = 0


class Finished(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The task is done; its frames hold the parts of the result. `flagged`: the safety checker rejects the image."""

    task: Name
    attempt: Count
    parts: Annotated[tuple[Part, ...], msgspec.Meta(max_length=MAX_PARTS)]
    flagged: bool = False
    #: Tokens at the end of the prompts that the model has not read.
    truncated_tokens: Count = 0

    @property
    def frames(self) -> int:
        return len(self.parts)


class Chunk(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """One piece of a streamed result, in its frame. A task that starts again counts its chunks from 0 again."""

    task: Name
    attempt: Count
    index: Count
    part: Part

    @property
    def frames(self) -> int:
        return 1


class Tokens(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """What a step has generated for each text task. A task with a finish reason ends with `Finished`, without parts."""

    tasks: Annotated[list[TaskTokens], msgspec.Meta(max_length=MAX_TEXT_TASKS)]


class Failed(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The task failed; others are unaffected."""

    task: Name
    attempt: Count
    kind: FailureKind
    message: str
    #: HTTP status that a user's engine chose; 0: that of the kind.
    status: ErrorStatus = 0


class Preempted(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The worker hands the task back unfinished; its frames hold the checkpoint at `step`."""

    task: Name
    attempt: Count
    step: Count = 0
    frames: Count = 0


class Heartbeat(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Sent from a separate thread, so that a long step never delays it."""

    running: Count
    #: Moving averages over recent steps; 0 before the first.
    step_s: Seconds = 0.0
    batch: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    memory_bytes: Sum = 0
    counters: WorkerCounters = WorkerCounters()
    curves: Annotated[list[StepCurve], msgspec.Meta(max_length=MAX_CURVES)] = []
    #: Of a text engine.
    text: TextCounters | None = None


class Bye(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The last message. Its tasks are queued again; `crashed`: one of them may be the cause."""

    reason: str
    crashed: bool = False


ToBalancer = Hello | Capacity | Started | Progress | Chunk | Tokens | Finished | Failed | Preempted | Heartbeat | Bye


# ---- balancer -> worker


class Ack(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Answers `Hello` and every `Heartbeat`."""

    heartbeat_s: Seconds


class Reject(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The balancer does not know this worker, which sends `Hello` again, or will never accept it (`fatal`)."""

    reason: str
    fatal: bool = False


class Assign(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Tasks for the worker's free slots, with their frames in the same order.

    `queued`: so many tasks of its model wait for a slot of any worker.
    """

    tasks: list[Assignment]
    queued: Count = 0


class Cancel(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Drop these tasks and free their slots at the next step boundary."""

    tasks: list[Name]


class Preempt(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Hand these tasks back at the next step boundary, with their checkpoints. `unstarted`: only if they still wait."""

    tasks: list[Name]
    unstarted: bool = False


class ServerStopping(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The balancer finishes its requests within this time, then ends. Until then SIGTERM does not drain a worker."""

    within_s: Seconds


ToWorker = Ack | Reject | Assign | Cancel | Preempt | ServerStopping
