"""Texts that are prepared beside the steps: templates, tokens and grammars of long prompts take long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from wire.inputs import TextInputs
from wire.text import TextPrompt, decode_prompt, unpack_tokens
from worker.engine import EngineRequest, TaskError
from worker.engines.text.generation import Generation

#: A shorter prompt takes less than a millisecond, and joins the next step.
_LONG_PROMPT_BYTES = 4096


class MakeGeneration(Protocol):
    """Makes the generation of an engine. Raises `TaskError`."""

    def __call__(self, inputs: TextInputs, prompt: TextPrompt, done: Sequence[int]) -> Generation: ...


def is_long(request: EngineRequest) -> bool:
    """Return true if turning the prompt into tokens, or its schema into a grammar, delays running texts."""
    inputs = request.inputs
    return (
        isinstance(inputs, TextInputs)
        and len(request.sources) > 0
        and (len(request.sources[0]) > _LONG_PROMPT_BYTES or bool(inputs.json_schema) or request.checkpoint is not None)
    )


def prepare_generation(request: EngineRequest, make: MakeGeneration) -> Generation | TaskError:
    """Return the generation, or its error: what has failed beside the steps is not computed again between them."""
    try:
        return make_generation(request, make)
    except TaskError as error:
        return error


def make_generation(request: EngineRequest, make: MakeGeneration) -> Generation:
    """Return the generation that was prepared, or make it. Raises `TaskError`."""
    if isinstance(request.prepared, Generation):
        return request.prepared
    if isinstance(request.prepared, TaskError):
        raise request.prepared
    inputs = request.inputs
    assert isinstance(inputs, TextInputs)
    try:
        prompt = decode_prompt(request.sources[0])
        done = unpack_tokens(request.checkpoint.frames[0]) if request.checkpoint is not None else ()
        return make(inputs, prompt, done)
    except (msgspec.MsgspecError, ValueError, IndexError) as error:
        raise TaskError("invalid", f"the prompt or its generated tokens cannot be read: {error}") from error
