"""`POST /v1/completions`: the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.text.fields import (
    NEUTRAL,
    CommonFields,
    TokenId,
    Unsupported,
    check_stream_options,
    check_supported,
)
from loadbalancer.schema.text.tools import ResponseFormat

_NEUTRAL: Mapping[str, tuple[Any, ...]] = dict(NEUTRAL) | {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "prompt_embeds": (),
    "prompt_logprobs": (),
}


class CompletionRequest(CommonFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/completions`. A null counts as absent."""

    prompt: Annotated[
        str | list[str | TokenId | list[TokenId]],
        msgspec.Meta(description="A text, ids of tokens, or a list of either: a text is generated for each."),
    ]
    logprobs: (
        Annotated[
            int,
            msgspec.Meta(ge=0, le=64, description="Return log-probabilities, with so many alternatives to each token."),
        ]
        | None
    ) = None
    response_format: ResponseFormat | None = None
    best_of: Unsupported = None
    echo: Unsupported = None
    suffix: Unsupported = None
    prompt_embeds: Unsupported = None
    prompt_logprobs: Unsupported = None

    def check(self) -> None:
        """Raises `InvalidRequest` for a parameter that is not supported."""
        check_supported(self, dict(_NEUTRAL) | {"best_of": (1, self.n or 1)})
        check_stream_options(self.stream_options, is_stream=self.stream is True)

    def prompts(self) -> Sequence[str | list[int]]:
        """Return the prompts: each is a text, or ids of tokens. Raises `InvalidRequest`."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if not given:
            raise InvalidRequest("Invalid value for 'prompt': it is empty.", param="prompt")
        tokens = [each for each in given if isinstance(each, int)]
        if len(tokens) == len(given):
            return [tokens]
        found = [each for each in given if not isinstance(each, int)]
        if tokens or len({type(each) for each in found}) > 1:
            text = "Invalid type for 'prompt'. Expected texts, or ids of tokens, and not both."
            raise InvalidRequest(text, param="prompt", code="invalid_type")
        empty = next((index for index, each in enumerate(found) if isinstance(each, list) and not each), None)
        if empty is not None:
            raise InvalidRequest(f"Invalid value for 'prompt[{empty}]': it is empty.", param=f"prompt[{empty}]")
        return found
