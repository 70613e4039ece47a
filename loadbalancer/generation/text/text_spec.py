"""One complete request for texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wire.inputs import TextInputs


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How the text of a request is divided for its client."""

    #: Tool calls are looked for.
    tools: bool = False
    #: Reasoning is separated from the content.
    reasoning: bool = False
    #: All tool calls of a text are returned, not only the first.
    parallel_calls: bool = True


@dataclass(frozen=True, slots=True)
class TextSpec:
    """One complete request: a task for each choice of each prompt, those of the first prompt first."""

    model: str
    inputs: Sequence[TextInputs]
    #: The encoded prompt of each task.
    frames: Sequence[bytes]
    timeout_s: float
    priority: int = 0
    #: Owner of the API key, and its share of the workers' time.
    owner: str = "anonymous"
    weight: float = 1.0
    #: Number of choices of each prompt.
    choices: int = 1
    output: OutputFormat = OutputFormat()
    #: Name of the prompt in the request.
    prompt_param: str = "messages"
    #: Limit of the API key.
    tokens_per_minute: int | None = None
