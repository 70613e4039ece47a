"""The interface between the step loop and an engine.

The loop owns order and time, the engine owns tensors. All methods are called from the loop's thread. The callables that
`render` and `save` return run in a thread pool while the loop continues. A result that is ready needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from configs.model_settings import Model
from configs.pipeline_defaults import with_defaults
from wire.inputs import SOURCES, ImageFormat, ImageInputs, Part, TaskInputs
from wire.messages import EngineInfo, FailureKind
from wire.text import TextCounters, TokenOutput

#: Steps of a sample, so that several can be measured one after the other.
_SAMPLE_STEPS = 5
#: Tasks with equal keys can share a forward pass.
BatchKey = Hashable


class TaskError(Exception):
    """One task failed, the others are unaffected. `kind` and the text go to the client.

    `status`: HTTP status, if an engine chose one; 0: that of the kind.
    """

    def __init__(self, kind: FailureKind, message: str, status: int = 0) -> None:
        message = message.encode(errors="replace").decode()  # a lone surrogate cannot be sent
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.status = status


def context_exceeded(context_length: int, prompt: str) -> TaskError:
    """Return the error of a prompt that leaves no room for a result. `prompt`: what is known of its tokens."""
    text = f"This model's maximum context length is {context_length} tokens, of the prompt and the result"
    return TaskError("context_length", f"{text}. However, the prompt has {prompt} tokens.", 400)


class UnsupportedModel(Exception):
    """The configured model is missing or of a kind that no engine can run. The text says which."""


class OutOfMemory(Exception):
    """The device cannot hold a step of this many rows. The text says what was needed; no row has advanced."""


class DeviceLost(Exception):
    """The device is unusable for this process, which must exit."""


class Checkpoint(msgspec.Struct, frozen=True):
    """A task's complete state at a step boundary, from which another worker can continue."""

    step: int
    frames: Sequence[bytes] = ()


class EngineRequest(msgspec.Struct, frozen=True):
    """A task to admit: its inputs with their frames, and its state if it ran before.

    `sources`: the source images of an image as raw pixels, the parts of a call.
    """

    inputs: TaskInputs
    sources: Sequence[bytes] = ()
    checkpoint: Checkpoint | None = None
    #: What the engine has prepared for it beside the steps; None if nothing.
    prepared: object = None

    @property
    def image(self) -> ImageInputs:
        """The inputs of an image. Raises `TaskError` for any other kind of task."""
        if not isinstance(self.inputs, ImageInputs):
            raise TaskError("invalid", "this model generates images and takes no calls")
        return self.inputs


def check_sources(inputs: ImageInputs, sources: Sequence[bytes]) -> None:
    """Raises `TaskError` unless these are the pixels of the source images that the mode takes."""
    if len(sources) != SOURCES[inputs.mode]:
        raise TaskError(
            "invalid", f"mode '{inputs.mode}' takes {SOURCES[inputs.mode]} source images, got {len(sources)}"
        )
    for source, name, channels in zip(sources, ("image", "mask"), (3, 1), strict=False):
        size = inputs.width * inputs.height * channels
        if len(source) != size:
            raise TaskError(
                "invalid",
                f"{name} pixels of {inputs.width}x{inputs.height} must have {size} bytes, got {len(source)}",
            )


class TaskResult(msgspec.Struct, frozen=True):
    """What a task returns: parts and the bytes of each. `flagged`: the model's safety checker rejects the image."""

    parts: tuple[Part, ...]
    frames: Sequence[bytes]
    flagged: bool = False
    #: Tokens at the end of the prompts that the model has not read.
    truncated_tokens: int = 0

    @property
    def data(self) -> bytes:
        """The bytes of the only part."""
        [data] = self.frames
        return data


def image_result(
    data: bytes, image_format: ImageFormat, *, flagged: bool = False, truncated_tokens: int = 0
) -> TaskResult:
    """Return the result of a task that generates an image."""
    return TaskResult((Part(f"image/{image_format}"),), [data], flagged, truncated_tokens)


def image_samples(model: Model, info: EngineInfo) -> list[EngineRequest]:
    """Return a request of the default size and of each configured one; none for an engine that needs an image."""
    if "text" not in info.modes:
        return []
    usual = default_inputs(model)
    others = [tuple(map(int, size.split("x"))) for size in model.warm_up.sizes]
    steps = max(usual.steps, _SAMPLE_STEPS)
    return [
        EngineRequest(msgspec.structs.replace(usual, width=width, height=height, steps=steps))
        for width, height in dict.fromkeys([(usual.width, usual.height), *others])
    ]


def default_inputs(model: Model) -> ImageInputs:
    """Return the inputs of a request that says nothing."""
    defaults = with_defaults(model).defaults
    assert defaults.steps is not None
    assert defaults.guidance_scale is not None
    width, height = defaults.sides
    return ImageInputs("", width, height, defaults.steps, defaults.guidance_scale, 0, defaults.scheduler)


class EngineLimits(NamedTuple):
    """What an engine says about its batches. The configuration comes first."""

    #: None: the measured number.
    max_batch_size: int | None = None
    batch_wait_ms: float = 0.0


class ResultChunk(NamedTuple):
    """A piece of a streamed result."""

    #: Counted from 0; a task that continues from a checkpoint counts on from there.
    number: int
    part: Part
    frame: bytes


class Row(Protocol):
    """A task inside the engine. It is done when `step == steps`."""

    @property
    def step(self) -> int:
        """Steps completed."""

    @property
    def steps(self) -> int:
        """Total number of forward passes; some samplers need more than the requested steps."""

    @property
    def collected_bytes(self) -> int:
        """About the bytes of the values that it has collected for its result. Asked of engines that stream results."""

    def take_chunks(self) -> Sequence[ResultChunk]:
        """Remove and return the pieces of a streamed result that the last steps have made.

        Called for engines that stream results other than texts.
        """

    def take_tokens(self) -> TokenOutput | None:
        """Remove and return what the last step has generated for a text; None for nothing. Called for texts only."""


class UnstreamedRow:
    """Base of rows whose result comes at the end only."""

    @property
    def collected_bytes(self) -> int:
        return 0

    def take_chunks(self) -> Sequence[ResultChunk]:
        return ()

    def take_tokens(self) -> TokenOutput | None:
        return None


class StepEngine(Protocol):
    """A model whose requests take many steps and can join and leave the batch between any two."""

    def fetch(self) -> None:
        """Read the weights into main memory without using the device. Called once, first."""

    def load(self) -> None:
        """Move the weights to the constructor's device, first used here. Fetches them if `fetch` was skipped."""

    def warm_up(self) -> None:
        """Run once, so that the first request is as fast as later ones. Called once, after `load`."""

    def info(self) -> EngineInfo:
        """Return the engine's properties. Valid after `load`."""

    def limits(self) -> EngineLimits:
        """Return what it says about its batches. Valid after `load`."""

    def fingerprint(self) -> str:
        """Return a text that names all that its speed depends on: device, model, precision, library versions."""

    def key(self, request: EngineRequest) -> BatchKey:
        """Return the key that tasks which can share a forward pass have in common. Cheap and pure.

        Raises `TaskError` for inputs that the engine does not take.
        """

    def samples(self) -> Sequence[EngineRequest]:
        """Return a request of each shape whose steps are measured before the first real one. Valid after `load`."""

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        """Return a row or an error for each task, in order. Prompts are encoded together.

        A text continues after the tokens in its checkpoint's frame. It reports none of these again.

        Raises `OutOfMemory` if they do not fit together, and `DeviceLost`.
        """

    def step(self, rows: Sequence[Row]) -> None:
        """Advance every row by one step; all have equal keys. If it raises, no row has advanced.

        Raises `OutOfMemory` if they do not fit together, `DeviceLost`, or any other error if a row cannot be stepped;
        the loop finds out which.
        """

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work."""

    def render(self, row: Row) -> TaskResult | Callable[[], TaskResult]:
        """Return the row's present result, or a callable that makes it, unaffected by later steps.

        For an image it decodes and encodes. Both raise `TaskError` if there is none (a latent that is not finite).
        """

    def save(self, row: Row) -> Callable[[], Checkpoint] | None:
        """Return a callable, as `render` does, for a checkpoint of the row; None if the task can only start again.

        The row may continue or be released.
        """

    def release(self, row: Row) -> None:
        """Free the row. Called once for every admitted row, after its last `render` or `save`."""

    def memory_bytes(self) -> int:
        """Return the memory in use on the device."""

    def close(self) -> None:
        """Called when the worker ends, unless it crashes. Nothing follows."""


@runtime_checkable
class PreparesSteps(Protocol):
    """An engine whose first step of each shape takes long, because it is compiled or recorded."""

    @property
    def prepares_steps(self) -> bool:
        """True if steps of the usual batches have to be prepared before the first request. Valid after `load`."""

    def end_preparation(self) -> None:
        """Prepare nothing from now on: shapes that come later run as they are."""


@runtime_checkable
class PreparesTasks(Protocol):
    """An engine that does the slow part of an admission beside the steps: encoding, reading files."""

    def needs_preparation(self, request: EngineRequest) -> bool:
        """Return true if admitting the task takes long. Cheap; called by the loop."""

    def prepare(self, request: EngineRequest) -> object:
        """Return what `admit` needs of this task, as `EngineRequest.prepared`; None if nothing can be prepared.

        Called from another thread, beside any other method, for one task at a time. `admit` finds errors again, except
        for `DeviceLost`.
        """

    def discard(self, prepared: object) -> None:
        """Free what `prepare` returned for a task that is not admitted."""


@runtime_checkable
class HoldsWeights(Protocol):
    """An engine that a standby worker can keep ready in main memory."""

    def hold_weights(self) -> None:
        """Keep the weights in this process's memory until `load`. Called after `fetch`, without the device."""


@runtime_checkable
class StepsAhead(Protocol):
    """An engine whose device works behind the loop."""

    @property
    def steps_ahead(self) -> bool:
        """True if `step` returns when the step before it has finished, so that the device never waits for the loop."""


@runtime_checkable
class CountsTokens(Protocol):
    """An engine for texts."""

    def text_counters(self) -> TextCounters:
        """Return its sums since the start. Called from the client's thread."""


@runtime_checkable
class TrimsMemory(Protocol):
    """An engine whose `memory_bytes` is the peak of a device's memory."""

    def trim_memory(self) -> bool:
        """Return unused memory to the device and forget the peak. False if it uses no memory of a device."""
