"""Every message between the balancer and a worker, named by what it says.

A message is a small tagged struct. Bulk data (an image, a checkpoint, a preview) never stands inside it: it
travels as raw frames beside the header, and `frames` says how many of them belong to the message (see `codec`).
Changing a field here changes the protocol: raise `PROTOCOL` and pin the new bytes in the golden-frame test.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Literal

import msgspec

PROTOCOL = 4

#: What is read is held to these bounds: a number that no honest peer says is refused with its message, at the door.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Sum = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Side = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Name = Annotated[str, msgspec.Meta(max_length=200)]

ImageFormat = Literal["png", "jpeg", "webp"]
FailureKind = Literal["invalid", "error", "out_of_memory", "unsafe"]
#: What an image is drawn from: a text; a text and a picture; or these and a mask of what to draw anew.
GenerationMode = Literal["text", "image", "inpaint"]
#: How many frames of pixels each takes.
SOURCES: dict[GenerationMode, int] = {"text": 0, "image": 1, "inpaint": 2}


#: What an adapter may be called: a file's name without its ending, and never a path.
LORA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Lora(msgspec.Struct, frozen=True, omit_defaults=True):
    """An adapter of the configured folder, by name, and how strongly it counts."""

    name: str
    scale: float = 1.0


class ImageInputs(msgspec.Struct, frozen=True, tag="image", omit_defaults=True):
    """One image to draw. The front door has resolved every default: nothing here is optional by neglect.

    Source pictures travel beside it as frames of raw pixels, `width * height * 3` bytes of RGB, then for `inpaint`
    a mask of `width * height` bytes, 255 where the picture is to be drawn anew.
    """

    prompt: str
    width: Side
    height: Side
    steps: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    guidance_scale: float
    seed: int
    scheduler: str
    negative_prompt: str = ""
    output_format: ImageFormat = "png"
    output_quality: Annotated[int, msgspec.Meta(ge=0, le=100)] = 100
    #: Previews to send on the way, spread evenly over the steps.
    partial_images: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    mode: GenerationMode = "text"
    #: How far from the source picture: 1 ignores it. Without meaning for `text`.
    strength: float = 1.0
    loras: tuple[Lora, ...] = ()
    #: Equal bytes for an equal seed under any load, at the price of smaller shared batches.
    reproducible: bool = False


class Assignment(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task handed to a worker. `frames` raw frames follow: its source pictures, then its checkpoint."""

    task: Name
    attempt: Count
    inputs: ImageInputs
    #: Step to resume at; the checkpoint's frames say from what state.
    step: Count = 0
    #: Nothing may share a batch with it: its worker died before, and it may be why.
    isolated: bool = False
    frames: Count = 0


class WorkerCounters(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker has done since it started. Sums, so that rates follow from two readings."""

    steps: Sum = 0
    #: Tasks advanced, summed over steps: `rows / steps` is the mean batch.
    rows: Sum = 0
    max_batch: Sum = 0
    #: Tasks that joined a batch whose other rows were already under way.
    joined_midway: Sum = 0
    finished: Sum = 0
    failed: Sum = 0
    #: Seconds spent inside `engine.step`.
    step_s: Seconds = 0.0
    #: Times that a batch did not fit into memory and was made smaller.
    out_of_memory: Sum = 0
    #: Messages of the balancer that were none.
    malformed: Sum = 0


class StepCurve(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a step costs at one picture size: measured at the start, refined by every step since."""

    width: Side
    height: Side
    #: Most tasks that share a step: more would gain nothing, take too long, or not fit.
    cap: Count
    #: (tasks in the batch, seconds of a step), by tasks.
    points: list[tuple[Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)], Seconds]] = []

    def __post_init__(self) -> None:
        """Raises `ValueError` where a batch stands there twice or out of order: nobody could read between the two."""
        if any(fewer >= more for (fewer, _), (more, _) in itertools.pairwise(self.points)):
            raise ValueError("points must rise by their tasks")


class EngineInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker's engine is, for people and for the checks at the front door."""

    #: Class of the pipeline that it runs.
    pipeline: str = ""
    #: `family` (an adapter of our own), `generic` (any pipeline, one thread per request) or `sim`.
    batching: str = "family"
    #: What it can draw from.
    modes: tuple[GenerationMode, ...] = ("text",)
    #: Whether tasks move between workers with their progress.
    checkpoints: bool = False
    loras: bool = False
    reproducible: bool = False
    dtype: str = ""


class StartupTimes(msgspec.Struct, frozen=True, omit_defaults=True):
    """How long a worker's start took, in parts, in seconds. What a spare had done before it was called is not in it."""

    #: Until its program ran: from the creation of the process, or for a spare from the order to serve.
    spawn_s: Seconds = 0.0
    #: The engine's libraries.
    import_s: Seconds = 0.0
    #: The weights, into main memory.
    load_s: Seconds = 0.0
    #: The weights, onto the device.
    device_s: Seconds = 0.0
    #: The first step and picture, and what steps cost by batch.
    warm_up_s: Seconds = 0.0
    #: It began as a spare.
    standby: bool = False

    @property
    def total_s(self) -> float:
        """All parts; 0 where the worker did not tell."""
        return self.spawn_s + self.import_s + self.load_s + self.device_s + self.warm_up_s


# ---- worker -> balancer


class Hello(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """First message of a connection. A worker that reconnects names the tasks that it still runs."""

    protocol: int
    worker: Name
    model: Name
    device: Name
    pid: Count
    #: Each with the attempt in which it was given.
    running: list[tuple[Name, Count]] = []
    engine_info: EngineInfo = EngineInfo()
    start: StartupTimes = StartupTimes()


class Capacity(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The worker's room: it can hold `slots` tasks in all. Said again whenever it changes; 0 means drain."""

    slots: Count


class Started(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The task is in the running batch."""

    task: Name
    attempt: Count


class Progress(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """`step` of `steps` are done. Frames may follow: a preview picture (if `preview`), then a checkpoint at `step`."""

    task: Name
    attempt: Count
    step: Count
    steps: Count
    preview: bool = False
    frames: Count = 0


class Finished(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The task is done; its frame holds the encoded image. `flagged`: the model's safety checker objects to it."""

    task: Name
    attempt: Count
    frames: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    flagged: bool = False


class Failed(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The task cannot be done, and only this task."""

    task: Name
    attempt: Count
    kind: FailureKind
    message: str


class Preempted(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The worker hands the task back, not as a failure; its frames hold the checkpoint at `step`."""

    task: Name
    attempt: Count
    step: Count = 0
    frames: Count = 0


class Heartbeat(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The worker lives. Sent from a thread of its own, so that a long step never delays it."""

    running: Count
    #: Moving averages over recent steps; 0 before the first.
    step_s: Seconds = 0.0
    batch: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    memory_bytes: Sum = 0
    counters: WorkerCounters = WorkerCounters()
    curves: list[StepCurve] = []


class Bye(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The worker's last words. What it still held is to be queued again; `crashed`: one of these may be the reason."""

    reason: str
    crashed: bool = False


ToBalancer = Hello | Capacity | Started | Progress | Finished | Failed | Preempted | Heartbeat | Bye


# ---- balancer -> worker


class Ack(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Answers `Hello` and every `Heartbeat`: the balancer lives too."""

    heartbeat_s: Seconds


class Reject(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The balancer does not know this worker (say `Hello` again), or will never take it (`fatal`)."""

    reason: str
    fatal: bool = False


class Assign(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Tasks for the worker's free slots. Their frames follow in the order of the tasks."""

    tasks: list[Assignment]


class Cancel(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Nobody waits for these any more: free their slots at the next step boundary."""

    tasks: list[Name]


class Preempt(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Hand these back at the next step boundary, with their checkpoints."""

    tasks: list[Name]


ToWorker = Ack | Reject | Assign | Cancel | Preempt
