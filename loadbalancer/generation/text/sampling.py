"""Resolves how tokens are chosen: by the request, else the configuration, the checkpoint, or OpenAI's default. Pure."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from configs.text_settings import TextDefaults, TextGeneration
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.parsing import shorten
from loadbalancer.schema.text.fields import MAX_TOKEN, SamplingFields
from wire.inputs import Sampling, TextInputs
from wire.text import SamplingDefaults, TextInfo

Value = TypeVar("Value", int, float)
#: Seeds are modulo this.
SEEDS = 2**63
#: Of a `top_p` of 0: the most probable token alone.
_LEAST_TOP_P = 1e-6
#: A logit that is divided by less has no place in float32. It counts as 0.
_LEAST_TEMPERATURE = 1e-30


class TokenLimits(NamedTuple):
    """The number of tokens of a text, and the name of its parameter in the request."""

    name: str
    requested: int | None
    #: Where neither the request nor the configuration says it; None: what the configuration allows.
    default: int | None = None


def resolve_inputs(
    request: SamplingFields,
    settings: TextGeneration,
    info: TextInfo | None,
    random_seed: int,
    limits: TokenLimits,
    *,
    logprobs: int | None,
    json_schema: str,
    logprobs_name: str = "top_logprobs",
) -> TextInputs:
    """Return the inputs of the first choice. `info` is None until a worker has connected. Raises `InvalidRequest`."""
    max_tokens = _max_tokens(limits, settings)
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        text = f"Invalid value for 'min_tokens': {min_tokens}. Must be at most '{limits.name}' ({max_tokens})."
        raise InvalidRequest(text, param="min_tokens")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    allowed = settings.limits.max_top_logprobs
    if logprobs is not None and logprobs > allowed:
        text = f"Invalid value for '{logprobs_name}': {logprobs}. Must be at most {allowed}"
        raise InvalidRequest(f"{text} (text.limits.max_top_logprobs).", param=logprobs_name)
    vocabulary = info.vocabulary if info is not None else 0
    for token in request.stop_token_ids or ():
        check_token(token, vocabulary, "stop_token_ids")
    return TextInputs(
        _sampling(request, settings.defaults, info, random_seed, vocabulary),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=tuple(dict.fromkeys(stop)),
        stop_token_ids=tuple(dict.fromkeys(request.stop_token_ids or ())),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        json_schema=json_schema,
    )


def _max_tokens(limits: TokenLimits, settings: TextGeneration) -> int:
    allowed = settings.limits.max_tokens
    if limits.requested is None:
        return min(settings.defaults.max_tokens or limits.default or allowed, allowed)
    if limits.requested > allowed:
        text = f"Invalid value for '{limits.name}': {limits.requested}. Must be at most {allowed}"
        raise InvalidRequest(f"{text} (text.limits.max_tokens).", param=limits.name)
    return limits.requested


def _sampling(
    request: SamplingFields, configured: TextDefaults, info: TextInfo | None, random_seed: int, vocabulary: int
) -> Sampling:
    found = info.defaults if info is not None else SamplingDefaults()
    top_p = _first(request.top_p, configured.top_p, found.top_p, 1.0)
    top_k = _first(request.top_k, configured.top_k, found.top_k, 0)
    temperature = _first(request.temperature, configured.temperature, found.temperature, 1.0)
    seed = random_seed if request.seed is None else request.seed
    return Sampling(
        seed % SEEDS,
        temperature=temperature if temperature >= _LEAST_TEMPERATURE else 0.0,
        top_p=top_p or _LEAST_TOP_P,
        top_k=max(top_k, 0),
        min_p=_first(request.min_p, configured.min_p, found.min_p, 0.0),
        repetition_penalty=_first(
            request.repetition_penalty, configured.repetition_penalty, found.repetition_penalty, 1.0
        ),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=tuple(sorted(_biases(request.logit_bias or {}, vocabulary).items())),
        unset=_unset(request, configured) if info is None else (),
    )


def _unset(request: SamplingFields, configured: TextDefaults) -> tuple[str, ...]:
    """Return the parameters whose values the worker takes from the checkpoint."""
    names = SamplingDefaults.__struct_fields__
    return tuple(name for name in names if getattr(request, name) is None and getattr(configured, name) is None)


def _first(*values: Value | None) -> Value:
    """The first value that is there; the last always is."""
    return next(value for value in values if value is not None)


def _biases(given: dict[str, float], vocabulary: int) -> dict[int, float]:
    found = {}
    for name, bias in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) <= 10):
            text = f"Invalid value for 'logit_bias': {shorten(name)} is no token id."
            raise InvalidRequest(text, param="logit_bias")
        check_token(int(name), vocabulary, "logit_bias")
        found[int(name)] = bias
    return found


def check_token(token: int, vocabulary: int, param: str) -> None:
    """Raises `InvalidRequest` for a token that the model does not have. A `vocabulary` of 0 is unknown."""
    if token > MAX_TOKEN or (vocabulary and token >= vocabulary):
        size = vocabulary or MAX_TOKEN + 1
        text = f"Invalid value for '{param}': {token}. Tokens of this model are from 0 to {size - 1}."
        raise InvalidRequest(text, param=param)
