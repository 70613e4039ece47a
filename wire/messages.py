"""Every message between the balancer and a worker, named by what it says.

A message is a small tagged struct. Bulk data (an image, a checkpoint, a preview) never stands inside it: it
travels as raw frames beside the header, and `frames` says how many of them belong to the message (see `codec`).
Changing a field here changes the protocol: raise `PROTOCOL` and pin the new bytes in the golden-frame test.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

PROTOCOL = 2

ImageFormat = Literal["png", "jpeg", "webp"]
FailureKind = Literal["invalid", "error", "out_of_memory", "unsafe"]
#: What an image is drawn from: a text; a text and a picture; or these and a mask of what to draw anew.
DrawMode = Literal["text", "image", "inpaint"]
#: How many frames of pixels each takes.
SOURCES: dict[DrawMode, int] = {"text": 0, "image": 1, "inpaint": 2}


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
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    scheduler: str
    negative_prompt: str = ""
    output_format: ImageFormat = "png"
    output_quality: int = 100
    #: Previews to send on the way, spread evenly over the steps.
    partial_images: int = 0
    mode: DrawMode = "text"
    #: How far from the source picture: 1 ignores it. Without meaning for `text`.
    strength: float = 1.0
    loras: tuple[Lora, ...] = ()
    #: Equal bytes for an equal seed under any load, at the price of smaller shared batches.
    reproducible: bool = False


class Assignment(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task handed to a worker. `frames` raw frames follow: its source pictures, then its checkpoint."""

    task: str
    attempt: int
    inputs: ImageInputs
    #: Step to resume at; the checkpoint's frames say from what state.
    step: int = 0
    #: Nothing may share a batch with it: its worker died before, and it may be why.
    alone: bool = False
    frames: int = 0


class Counters(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker has done since it started. Sums, so that rates follow from two readings."""

    steps: int = 0
    #: Tasks advanced, summed over steps: `rows / steps` is the mean batch.
    rows: int = 0
    max_batch: int = 0
    #: Tasks that joined a batch whose other rows were already under way.
    joined_midway: int = 0
    finished: int = 0
    failed: int = 0
    #: Seconds spent inside `engine.step`.
    step_s: float = 0.0
    #: Times that a batch did not fit into memory and was made smaller.
    out_of_memory: int = 0


class StepCurve(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a step costs at one picture size: measured at the start, refined by every step since."""

    width: int
    height: int
    #: Most tasks that share a step: more would gain nothing, take too long, or not fit.
    cap: int
    #: (tasks in the batch, seconds of a step), by tasks.
    points: list[tuple[int, float]] = []


class About(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker's engine is, for people and for the checks at the front door."""

    #: Class of the pipeline that it runs.
    pipeline: str = ""
    #: `family` (an adapter of our own), `rendezvous` (any pipeline, in threads of its own) or `sim`.
    batching: str = "family"
    #: What it can draw from.
    modes: tuple[DrawMode, ...] = ("text",)
    #: Whether tasks move between workers with their progress.
    checkpoints: bool = False
    loras: bool = False
    reproducible: bool = False
    dtype: str = ""


# ---- worker -> balancer


class Hello(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """First message of a connection. A worker that reconnects names the tasks that it still runs."""

    protocol: int
    worker: str
    model: str
    device: str
    pid: int
    running: list[str] = []
    about: About = About()


class Pull(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The worker's room: it can hold `slots` tasks in all. Said again whenever it changes; 0 means drain."""

    slots: int


class Started(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The task is in the running batch."""

    task: str
    attempt: int


class Progress(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """`step` of `steps` are done. Frames may follow: a preview picture (if `preview`), then a checkpoint at `step`."""

    task: str
    attempt: int
    step: int
    steps: int
    preview: bool = False
    frames: int = 0


class Finished(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The task is done; its frame holds the encoded image. `flagged`: the model's safety checker objects to it."""

    task: str
    attempt: int
    frames: int = 1
    flagged: bool = False


class Failed(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The task cannot be done, and only this task."""

    task: str
    attempt: int
    kind: FailureKind
    message: str


class Returned(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The worker hands the task back, not as a failure; its frames hold the checkpoint at `step`."""

    task: str
    attempt: int
    step: int = 0
    frames: int = 0


class Heartbeat(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The worker lives. Sent from a thread of its own, so that a long step never delays it."""

    running: int
    #: Moving averages over recent steps; 0 before the first.
    step_s: float = 0.0
    batch: float = 0.0
    memory_bytes: int = 0
    counters: Counters = Counters()
    curves: list[StepCurve] = []


class Bye(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The worker's last words. What it still held is to be queued again; `crashed`: one of these may be the reason."""

    reason: str
    crashed: bool = False


ToBalancer = Hello | Pull | Started | Progress | Finished | Failed | Returned | Heartbeat | Bye


# ---- balancer -> worker


class Welcome(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Answers `Hello` and every `Heartbeat`: the balancer lives too."""

    heartbeat_s: float


class Reject(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The balancer does not know this worker (say `Hello` again), or will never take it (`fatal`)."""

    reason: str
    fatal: bool = False


class Assign(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Tasks for the worker's free slots. Their frames follow in the order of the tasks."""

    tasks: list[Assignment]


class Cancel(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Nobody waits for these any more: free their slots at the next step boundary."""

    tasks: list[str]


class Yield(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Hand these back at the next step boundary, with their checkpoints."""

    tasks: list[str]


class Drain(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Take nothing more; finish or return what runs; say `Bye`; exit."""

    reason: str


ToWorker = Welcome | Reject | Assign | Cancel | Yield | Drain
