"""What a task computes, and the parts of calls and results."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, NamedTuple

import msgspec

#: Values of one call, and of one result.
MAX_PARTS = 256
#: No sampler makes more forward passes per requested step: the bound on the step counts that a worker reports.
MAX_PASSES_PER_STEP = 20

#: Decoding rejects messages with numbers outside these bounds.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Side = Annotated[int, msgspec.Meta(ge=1, le=100_000)]


Name = Annotated[str, msgspec.Meta(max_length=200)]

ImageFormat = Literal["png", "jpeg", "webp"]


#: Inputs of an image: a text; a text and an image; or these and a mask of the area to repaint.
GenerationMode = Literal["text", "image", "inpaint"]
#: Number of pixel frames by mode.
SOURCES: dict[GenerationMode, int] = {"text": 0, "image": 1, "inpaint": 2}


class Shape(NamedTuple):
    """What the duration of a step depends on, beside the batch: step times and costs are kept by shape."""

    #: Chosen by the engine's kind of inputs, such as "512x512" for an image of this size.
    key: Annotated[str, msgspec.Meta(max_length=200)]
    #: Relative amount of computation, such as the number of pixels. A shape that was never measured is estimated by it.
    volume: Annotated[int, msgspec.Meta(ge=1, le=10**12)] = 1


#: The shape of tasks whose inputs do not tell how long a step takes.
NO_SHAPE = Shape("", 1)


#: Valid adapter names: a file name without its suffix, never a path.
LORA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Lora(msgspec.Struct, frozen=True, omit_defaults=True):
    """An adapter of the configured folder, by name, with its weight."""

    name: str
    scale: float = 1.0


class ImageInputs(msgspec.Struct, frozen=True, tag="image", omit_defaults=True):
    """One image to generate. The balancer has resolved all defaults.

    Source images travel as frames of raw pixels: `width * height * 3` bytes of RGB, then for `inpaint` a mask of
    `width * height` bytes, 255 where the image is to be repainted.
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
    #: Number of previews, spread evenly over the steps.
    previews: Annotated[int, msgspec.Meta(ge=0, le=1000)] = msgspec.field(default=0, name="partial_images")
    mode: GenerationMode = "text"
    #: Distance from the source image: 1 ignores it. Unused for `text`.
    strength: float = 1.0
    loras: tuple[Lora, ...] = ()
    #: Equal bytes for equal seeds under any load, at the cost of smaller batches.
    reproducible: bool = False

    @property
    def shape(self) -> Shape:
        """Its key is WIDTHxHEIGHT in pixels."""
        return Shape(f"{self.width}x{self.height}", self.width * self.height)

    @property
    def max_steps(self) -> int:
        """Largest number of steps that a worker may report."""
        return MAX_PASSES_PER_STEP * self.steps

    @property
    def source_frames(self) -> int:
        """Number of frames before those of a checkpoint."""
        return SOURCES[self.mode]


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """One value of a call or of a result. Its bytes are one frame."""

    media_type: Name = "application/json"
    #: Of a tensor, or of a field of a form.
    name: Name = ""
    #: NumPy's name of a tensor's elements, such as "float32". Its frame holds them in C order, little-endian.
    dtype: Name = ""
    shape: Annotated[tuple[Count, ...], msgspec.Meta(max_length=32)] = ()


class CallInputs(msgspec.Struct, frozen=True, tag="call", omit_defaults=True):
    """One call of a user's engine. Its frames hold the parts, in order."""

    shape: ClassVar[Shape] = NO_SHAPE
    #: Work in the engine's unit, as far as it is known before the task runs.
    steps: ClassVar[int] = 1
    #: Largest number of steps that a worker may report: the engine alone knows how many it takes.
    max_steps: ClassVar[int] = 2**31 - 1
    previews: ClassVar[int] = 0

    parts: Annotated[tuple[Part, ...], msgspec.Meta(max_length=MAX_PARTS)]
    #: The client wants the results piece by piece, as `Chunk`s.
    stream: bool = False

    @property
    def source_frames(self) -> int:
        """Number of frames before those of a checkpoint."""
        return len(self.parts)


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen. The noise of position p is a function of `seed` and p alone."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    #: 0: the most probable token.
    temperature: float = 1.0
    top_p: float = 1.0
    #: 0: all tokens.
    top_k: Count = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    #: (token id, added to its logit).
    logit_bias: Annotated[tuple[tuple[Count, float], ...], msgspec.Meta(max_length=1024)] = ()
    #: Parameters that only the checkpoint may set, where it was unknown when the others were resolved.
    unset: Annotated[tuple[Name, ...], msgspec.Meta(max_length=16)] = ()


class TextInputs(msgspec.Struct, frozen=True, tag="text", omit_defaults=True):
    """One text to generate. The balancer has resolved all defaults. Its frame holds the prompt, see `wire.text`.

    The state of a task is the ids of its generated tokens, as little-endian uint32 in one frame.
    """

    shape: ClassVar[Shape] = NO_SHAPE
    previews: ClassVar[int] = 0
    #: Number of frames before those of a checkpoint.
    source_frames: ClassVar[int] = 1

    sampling: Sampling
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**24)]
    min_tokens: Count = 0
    #: Texts that end the generation. They are not part of the result.
    stop: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    stop_token_ids: Annotated[tuple[Count, ...], msgspec.Meta(max_length=1024)] = ()
    ignore_eos: bool = False
    #: Number of alternatives whose log-probabilities are reported with each token's own; None: no log-probabilities.
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=64)] | None = None
    #: JSON Schema that the text must match; `{}`: any JSON object; empty: any text.
    json_schema: str = ""

    @property
    def steps(self) -> int:
        """The most that it can take. The balancer expects less, see `TextWork`."""
        return self.max_tokens

    @property
    def max_steps(self) -> int:
        return self.max_tokens


#: What a task computes. Only engines and the HTTP API know the kinds; everything between uses their common properties.
TaskInputs = ImageInputs | CallInputs | TextInputs


def reports_tokens(inputs: TaskInputs) -> bool:
    """Return whether each step's output is the whole state of the task: it needs no progress reports or checkpoints."""
    return isinstance(inputs, TextInputs)
