"""Prompts and generated tokens of text tasks."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from wire.batch_sizes import BatchSizes
from wire.inputs import Count, Name

#: Bounds one report, whatever a worker sends.
_MAX_TOKENS = 4096
_MAX_TEXT_CHARS = 65_536
_MAX_ALTERNATIVES = 64
#: Bytes of a token id in a frame.
TOKEN_BYTES = 4


class ChatPrompt(msgspec.Struct, frozen=True, tag="chat", omit_defaults=True):
    """Messages for the model's own chat template."""

    #: As clients send them, with `content` as a text or a list of text parts.
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    #: `auto`, `none`, `required`, or the name of a function in `tools`.
    tool_choice: str = "auto"
    #: Further variables of the template, such as `enable_thinking`.
    template_arguments: dict[str, Any] = {}
    #: False: the last message is of the assistant, and goes on.
    add_generation_prompt: bool = True


class PlainPrompt(msgspec.Struct, frozen=True, tag="plain"):
    """A text that is continued as it is."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True, tag="tokens"):
    """The ids of the prompt's tokens."""

    tokens: list[Count]


TextPrompt = ChatPrompt | PlainPrompt | TokenPrompt

#: They raise `msgspec.MsgspecError` for anything else.
encode_prompt = msgspec.json.Encoder().encode
decode_prompt = msgspec.json.Decoder(TextPrompt).decode


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The log-probability of a generated token and of the most probable ones at its position, before sampling."""

    token: bytes
    logprob: float
    top: Annotated[list[tuple[bytes, float]], msgspec.Meta(max_length=_MAX_ALTERNATIVES)] = []


FinishReason = Literal["", "stop", "length"]


class TokenOutput(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What one step has generated for a task."""

    #: Number of generated tokens before these.
    index: Count
    tokens: Annotated[list[Count], msgspec.Meta(max_length=_MAX_TOKENS)]
    #: Text that is complete: bytes of a half character and the start of a stop text are held back.
    text: Annotated[str, msgspec.Meta(max_length=_MAX_TEXT_CHARS)] = ""
    #: Empty: more tokens follow.
    finish: FinishReason = ""
    #: Of each token, where they were asked for.
    logprobs: Annotated[list[TokenLogprob], msgspec.Meta(max_length=_MAX_TOKENS)] = []
    #: In the first output of each attempt; 0 otherwise. `cached_tokens` of them were found in the prefix cache.
    prompt_tokens: Count = 0
    cached_tokens: Count = 0
    #: The stop text that ended it, or the id of a stop token.
    stop_reason: Annotated[str, msgspec.Meta(max_length=1000)] | Count | None = None


class TaskTokens(msgspec.Struct, frozen=True, array_like=True):
    """One task's part of a step's output."""

    task: Name
    attempt: Count
    output: TokenOutput


class Markers(msgspec.Struct, frozen=True, array_like=True):
    """Texts around a part of a generated text, such as its reasoning."""

    begin: Name
    end: Name

    @property
    def marks(self) -> tuple[str, str]:
        """Both texts."""
        return self.begin, self.end


CallStyle = Literal["object", "list", "named", "bare"]
ArgumentsKey = Literal["arguments", "parameters"]


class ToolCallFormat(msgspec.Struct, frozen=True, array_like=True):
    """How a model writes tool calls. Empty texts are not there."""

    #: Around each call of the styles `object` and `named`, and around the list of the style `list`.
    begin: Name
    end: Name
    #: `object`: a JSON object with the name and the arguments. `list`: a JSON list of such objects.
    #: `named`: the name, then the arguments as a JSON object.
    #: `bare`: the text is such an object, or several with semicolons between them.
    style: CallStyle = "object"
    #: Key of the arguments in an object.
    key: ArgumentsKey = "arguments"
    #: Of the style `named`: before an id of the call, which models write after the name, and before the arguments.
    before_id: Name = ""
    before_arguments: Name = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts that are neither names nor JSON."""
        return tuple(text for text in (self.begin, self.end, self.before_id, self.before_arguments) if text)


class SamplingDefaults(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the checkpoint says of requests that leave these out. None: it says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: Count | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class TextInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Properties of a language model, for clients and for validation."""

    #: Tokens of a prompt and its result.
    context_length: Count = 0
    #: It has a chat template.
    chat: bool = False
    #: Its chat template takes tools, and the model writes calls so.
    tool_calls: ToolCallFormat | None = None
    #: A text has both markers, even where the chat template has put the first one into the prompt.
    reasoning: Markers | None = None
    vocabulary: Count = 0
    defaults: SamplingDefaults = SamplingDefaults()


class TextCounters(msgspec.Struct, frozen=True, omit_defaults=True):
    """A text engine's sums since its start, and its present cache."""

    prompt_tokens: Count = 0
    #: Of these, found in the prefix cache.
    cached_tokens: Count = 0
    generated_tokens: Count = 0
    #: Tokens computed again because their cache blocks were taken.
    recomputed_tokens: Count = 0
    #: Seconds of steps, by what they computed.
    prefill_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    decode_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    #: Blocks of the key-value cache.
    blocks: Count = 0
    used_blocks: Count = 0
    #: Prompts, or parts of them, that were computed in the same step. Steps without prompts are left out.
    prefill_batches: BatchSizes = BatchSizes()


def pack_tokens(tokens: Iterable[int]) -> bytes:
    """Return the frame that holds these token ids."""
    return _little_endian(array("I", tokens)).tobytes()


def unpack_tokens(frame: bytes | bytearray | memoryview) -> Sequence[int]:
    """Return the token ids in a frame. Raises `ValueError` if it holds none."""
    if len(frame) % TOKEN_BYTES:
        raise ValueError(f"{len(frame)} bytes are no token ids")
    tokens = array("I")
    tokens.frombytes(bytes(frame))
    return _little_endian(tokens)


def _little_endian(tokens: array[int]) -> array[int]:
    if tokens.itemsize != TOKEN_BYTES:
        raise RuntimeError("this platform has no integers of 4 bytes")
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens
