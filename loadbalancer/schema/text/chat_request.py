"""`POST /v1/chat/completions`: the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from loadbalancer.schema.text.fields import (
    NEUTRAL,
    CommonFields,
    Ignored,
    Unsupported,
    check_stream_options,
    check_supported,
)
from loadbalancer.schema.text.messages import ChatMessage
from loadbalancer.schema.text.tools import AnyToolChoice, ResponseFormat, Tool

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
TemplateArguments = Annotated[
    msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "object", "description": "Variables of the chat template."})
]
_NEUTRAL: Mapping[str, tuple[Any, ...]] = dict(NEUTRAL) | {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "store": (False,),
    "web_search_options": (),
    "chat_template": (),
    "documents": (),
    "echo": (False,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "top_a": (),
}


class ChatRequest(CommonFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/chat/completions`. A null counts as absent."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    max_completion_tokens: (
        Annotated[int, msgspec.Meta(ge=1, le=2**24, description="The newer name of `max_tokens`.")] | None
    ) = None
    logprobs: Annotated[bool, msgspec.Meta(description="Return the log-probability of each token.")] | None = None
    top_logprobs: (
        Annotated[int, msgspec.Meta(ge=0, le=64, description="With `logprobs`: number of alternatives to each token.")]
        | None
    ) = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: AnyToolChoice | None = None
    reasoning_effort: (
        Annotated[
            ReasoningEffort,
            msgspec.Meta(description="A variable of the chat template; `none` also sets `enable_thinking` to false."),
        ]
        | None
    ) = None
    chat_template_kwargs: TemplateArguments = msgspec.field(default_factory=msgspec.Raw)
    add_generation_prompt: (
        Annotated[bool, msgspec.Meta(description="False: continue the last message, which is of the assistant.")] | None
    ) = None
    continue_final_message: (
        Annotated[bool, msgspec.Meta(description="True: continue the last message, which is of the assistant.")] | None
    ) = None
    parallel_tool_calls: (
        Annotated[bool, msgspec.Meta(description="False: only the first tool call of a text is returned.")] | None
    ) = None
    verbosity: Ignored = None
    prediction: Ignored = None
    moderation: Ignored = None
    prompt_cache_options: Ignored = None
    store: Unsupported = None
    audio: Unsupported = None
    modalities: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    web_search_options: Unsupported = None
    chat_template: Unsupported = None
    documents: Unsupported = None
    echo: Unsupported = None
    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    structured_outputs: Unsupported = None
    top_a: Unsupported = None

    def check(self) -> None:
        """Raises `InvalidRequest` for a parameter that is not supported."""
        check_supported(self, _NEUTRAL)
        check_stream_options(self.stream_options, is_stream=self.stream is True)
