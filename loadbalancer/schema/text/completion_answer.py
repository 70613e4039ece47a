"""`POST /v1/completions`: the response, and the chunks of a stream."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from loadbalancer.schema.text.logprobs import CompletionLogprobs
from loadbalancer.schema.text.usage import TextUsage

CompletionFinish = Literal["stop", "length"]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One text, or a part of it in a stream. The first `n` are of the first prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: CompletionFinish | None = None
    stop_reason: Annotated[
        str | int | None, msgspec.Meta(description="The text or the token of `stop` that ended it.")
    ] = None


class CompletionAnswer(msgspec.Struct, frozen=True):
    """The response to a completion, and an event of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: TextUsage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: None = None
