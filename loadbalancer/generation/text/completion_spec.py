"""Resolves a completion into a complete specification: defaults, bounds, prompts. Pure."""

from __future__ import annotations

from configs.settings import Settings
from loadbalancer.access.api_keys import Caller
from loadbalancer.generation.text.chat_spec import schema_bounds
from loadbalancer.generation.text.sampling import TokenLimits, check_token, resolve_inputs
from loadbalancer.generation.text.text_model import check_prompt_chars, choice_count, text_spec
from loadbalancer.generation.text.text_spec import OutputFormat, TextSpec
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.text.completion_request import CompletionRequest
from loadbalancer.schema.text.tools import json_schema_of
from wire.messages import EngineInfo
from wire.text import PlainPrompt, TokenPrompt, encode_prompt

#: OpenAI's default of `max_tokens`.
_MAX_TOKENS = 16
_CHARS_PER_TOKEN = 4


def completion_spec(
    request: CompletionRequest,
    settings: Settings,
    engine: EngineInfo | None,
    random_seed: int,
    caller: Caller,
    model: str,
) -> TextSpec:
    """Return the specification of `POST /v1/completions`. Raises `InvalidRequest`.

    `engine` is that of the `model`; None until a worker has connected.
    """
    info, limits = engine.text if engine is not None else None, settings.models[model].text.limits
    prompts = request.prompts()
    n, allowed = choice_count(request.n, settings, model), settings.max_instances
    if n * len(prompts) > allowed:
        text = f"Invalid value for 'prompt': {len(prompts)} prompts with {n} texts each. At most {allowed} texts"
        raise InvalidRequest(f"{text} are allowed (server.max_instances).", param="prompt")
    vocabulary = info.vocabulary if info is not None else 0
    frames = []
    for index, prompt in enumerate(prompts):
        name = f"prompt[{index}]" if len(prompts) > 1 else "prompt"
        if isinstance(prompt, str):
            check_prompt_chars(len(prompt), name, limits.max_prompt_chars)
            frames.append(encode_prompt(PlainPrompt(prompt)))
        else:
            check_prompt_chars(_CHARS_PER_TOKEN * len(prompt), name, limits.max_prompt_chars)
            check_token(max(prompt), vocabulary, name)
            frames.append(encode_prompt(TokenPrompt(prompt)))
    inputs = resolve_inputs(
        request,
        settings.models[model].text,
        info,
        random_seed,
        TokenLimits("max_tokens", request.max_tokens, _MAX_TOKENS),
        logprobs=request.logprobs,
        logprobs_name="logprobs",
        json_schema=json_schema_of(request.response_format, schema_bounds(limits)),
    )
    return text_spec(request, model, inputs, frames, settings, caller, OutputFormat(), prompt_param="prompt")
