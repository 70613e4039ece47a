"""Chooses the language model of a request, and checks what all text requests have. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from configs.settings import Settings
from configs.text_settings import TextGeneration
from loadbalancer.access.api_keys import Caller
from loadbalancer.generation.call_validation import call_timeout_s
from loadbalancer.generation.text.sampling import SEEDS
from loadbalancer.generation.text.text_spec import OutputFormat, TextSpec
from loadbalancer.generation.validation import endpoints, model_not_found
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.text.fields import CommonFields
from wire.inputs import Sampling, TextInputs
from wire.text import TextInfo

#: A character of a JSON string that is written with a backslash.
_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|.)")


def text_model(requested: str | None, settings: Settings) -> str:
    """Return the name of the requested language model, by default the first.

    Raises `ModelNotFound`, and `InvalidRequest` for a model of another kind.
    """
    first = (name for name, model in settings.models.items() if model.task == "text")
    name = requested or next(first, next(iter(settings.models)))
    if name not in settings.models:
        raise model_not_found(name, settings)
    if settings.models[name].task != "text":
        text = f"The model '{name}' generates no texts: use POST {' or '.join(endpoints(name, settings))}."
        raise InvalidRequest(text, param="model", code="unsupported_endpoint")
    return name


def check_prompt_chars(chars: int, param: str, max_chars: int) -> None:
    """Raises `InvalidRequest` for a prompt that is too long to be tokenized."""
    if chars > max_chars:
        text = f"Invalid value for '{param}': {chars} characters. At most {max_chars} are allowed"
        raise InvalidRequest(f"{text} (text.limits.max_prompt_chars).", param=param)


def check_chat_chars(frame: bytes, param: str, max_chars: int) -> None:
    """Raises as `check_prompt_chars` does, for a chat as JSON. It has no fewer bytes than characters.

    An escape counts as one character. The engine counts again, once the chat is rendered.
    """
    if len(frame) > max_chars:
        escapes = _ESCAPE.findall(frame)
        check_prompt_chars(len(frame.decode()) - sum(map(len, escapes)) + len(escapes), param, max_chars)


def choice_count(requested: int | None, settings: Settings, model: str) -> int:
    """Return `n`. Raises `InvalidRequest`."""
    n, allowed = requested or 1, settings.models[model].text.limits.max_choices
    if n > allowed:
        text = f"Invalid value for 'n': {n}. Must be at most {allowed} (text.limits.max_choices)."
        raise InvalidRequest(text, param="n")
    return n


def text_spec(
    request: CommonFields,
    model: str,
    inputs: TextInputs,
    prompts: Sequence[bytes],
    settings: Settings,
    caller: Caller,
    output: OutputFormat,
    *,
    prompt_param: str = "messages",
) -> TextSpec:
    """Return the request of `n` tasks for each prompt. Choice i of a prompt has the seed `seed + i`."""
    n = choice_count(request.n, settings, model)
    seed = inputs.sampling.seed
    choices = [
        inputs if not i else msgspec.structs.replace(inputs, sampling=_with_seed(inputs, (seed + i) % SEEDS))
        for i in range(n)
    ]
    return TextSpec(
        model,
        choices * len(prompts),
        [prompt for prompt in prompts for _ in range(n)],
        call_timeout_s(request.timeout_s, settings.server),
        request.priority or 0,
        caller.owner,
        caller.weight,
        choices=n,
        output=output,
        prompt_param=prompt_param,
        tokens_per_minute=caller.tokens_per_minute,
    )


def text_card(settings: TextGeneration, info: TextInfo | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the limits and the defaults of requests, for the list of models. `info` is None without a worker."""
    limits: dict[str, Any] = settings.limits.model_dump()
    defaults = settings.defaults.model_dump(exclude_none=True)
    if info is not None:
        known = msgspec.structs.asdict(info.defaults)
        defaults = {name: value for name, value in known.items() if value is not None} | defaults
        limits["context_length"] = info.context_length
    return limits, defaults


def _with_seed(inputs: TextInputs, seed: int) -> Sampling:
    return msgspec.structs.replace(inputs.sampling, seed=seed)
