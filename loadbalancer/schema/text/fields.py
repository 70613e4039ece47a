"""Fields that the requests of the text API share, and what is done with those of no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from configs.text import clip
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.predictions import Priority, Timeout

#: The most that the wire takes. The configuration may allow less.
MAX_STOPS = 64
MAX_STOP_CHARS = 1000
MAX_STOP_TOKENS = 1024
MAX_BIASES = 1024
MAX_TOKEN = 2**31 - 1

_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Tokens = Annotated[int, msgspec.Meta(ge=1, le=2**24)]
StopText = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STOP_CHARS)]
StopTexts = Annotated[list[StopText], msgspec.Meta(max_length=MAX_STOPS)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)]
#: Accepted for compatibility, whatever its value.
Ignored = Annotated[Any, msgspec.Meta(description="Accepted for compatibility, without effect.")]
#: In the request only to be refused by name, unless its value asks for nothing.
Unsupported = Annotated[Any, msgspec.Meta(description="Not supported.")]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a stream."""

    include_usage: (
        Annotated[bool, msgspec.Meta(description="End with a chunk that has the usage and no choices.")] | None
    ) = None
    continuous_usage_stats: (
        Annotated[bool, msgspec.Meta(description="With `include_usage`: the usage so far in every chunk.")] | None
    ) = None
    include_obfuscation: Ignored = None


class SamplingFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are chosen. A null counts as absent; defaults are the model's."""

    temperature: (
        Annotated[float, msgspec.Meta(ge=0, le=10, description="0 chooses the most probable token.")] | None
    ) = None
    top_p: (
        Annotated[float, msgspec.Meta(ge=0, le=1, description="Sum of probabilities of the tokens to choose from.")]
        | None
    ) = None
    top_k: (
        Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKEN, description="Number of tokens to choose from; 0 and -1: all.")]
        | None
    ) = None
    min_p: (
        Annotated[float, msgspec.Meta(ge=0, le=1, description="Least probability, as a part of the highest.")] | None
    ) = None
    repetition_penalty: (
        Annotated[
            float, msgspec.Meta(ge=1e-6, le=100, description="Above 1: tokens that occurred become less probable.")
        ]
        | None
    ) = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, msgspec.Meta(ge=-100, le=100)]],
            msgspec.Meta(max_length=MAX_BIASES, description="Added to logits, by token id."),
        ]
        | None
    ) = None
    seed: (
        Annotated[
            int,
            msgspec.Meta(ge=-(2**63), le=2**63 - 1, description="Makes the result repeatable. Choice i uses seed + i."),
        ]
        | None
    ) = None
    stop: (
        Annotated[StopText | StopTexts, msgspec.Meta(description="Texts that end the generation; not part of it.")]
        | None
    ) = None
    stop_token_ids: (
        Annotated[
            list[TokenId], msgspec.Meta(max_length=MAX_STOP_TOKENS, description="Tokens that end the generation.")
        ]
        | None
    ) = None
    min_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**24, description="Least number of tokens.")] | None = None
    ignore_eos: Annotated[bool, msgspec.Meta(description="Generate `max_tokens` tokens.")] | None = None


class CommonFields(SamplingFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields of chats and completions."""

    model: (
        Annotated[str, msgspec.Meta(description="Name of a served model; default: the first language model.")] | None
    ) = None
    max_tokens: (
        Annotated[_Tokens, msgspec.Meta(description="Most tokens to generate; default: the model's.")] | None
    ) = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128, description="Number of texts for a prompt; default 1.")] | None = None
    stream: Annotated[bool, msgspec.Meta(description="Respond with server-sent events.")] | None = None
    stream_options: StreamOptions | None = None
    priority: Priority | None = None
    timeout_s: Timeout | None = None
    user: Ignored = None
    metadata: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    skip_special_tokens: Unsupported = None
    spaces_between_special_tokens: Unsupported = None
    include_stop_str_in_output: Unsupported = None
    use_beam_search: Unsupported = None
    return_token_ids: Unsupported = None


#: Values of unsupported parameters that ask for nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "include_stop_str_in_output": (False,),
    "use_beam_search": (False,),
    "return_token_ids": (False,),
}


def check_stream_options(options: StreamOptions | None, *, is_stream: bool) -> None:
    """Raises `InvalidRequest` for options of a stream that is not asked for."""
    if options is not None and not is_stream:
        text = "Invalid value for 'stream_options': It needs 'stream': true."
        raise InvalidRequest(text, param="stream_options")


def check_supported(request: msgspec.Struct, neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises `InvalidRequest` for the first parameter whose value is not one of the neutral ones, or null."""
    for name, values in neutral.items():
        value = getattr(request, name)
        if value is None or any(type(value) is type(each) and value == each for each in values):
            continue
        allowed = " or ".join(dict.fromkeys(_json(each) for each in values))
        text = f"Unsupported parameter: '{name}' ({clip(_json(value), 80)})."
        if allowed:
            text = f"Unsupported value for '{name}': {clip(_json(value), 80)}. Only {allowed} is supported."
        raise InvalidRequest(text, param=name, code="unsupported_value" if allowed else "unsupported_parameter")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
